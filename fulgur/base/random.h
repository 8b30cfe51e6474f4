// Named streams of random numbers. A stream is a function of (seed, name) and a counter (SplitMix64 over the counter),
// so its whole state is one number, and no consumer disturbs another.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace fulgur {

// A permutation of 64 bits in which each depends on all (SplitMix64's last step): noise from a counter.
uint64_t mix(uint64_t bits);

class RandomStream {
 public:
  RandomStream(uint64_t seed, std::string_view name);

  uint64_t bits();             // 64 uniform bits
  double uniform();            // [0, 1), 53 bits
  uint64_t below(uint64_t n);  // [0, n), without bias
  float normal();              // mean 0, variance 1

  uint64_t counter() const { return counter_; }
  void set_counter(uint64_t counter) { counter_ = counter; }

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

// Every order equally likely.
template <class T>
void shuffle(std::vector<T>& items, RandomStream& random) {
  for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random.below(i)]);
}

}  // namespace fulgur
