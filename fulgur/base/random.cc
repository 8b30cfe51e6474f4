#include "fulgur/base/random.h"

#include <cmath>

namespace fulgur {

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

RandomStream::RandomStream(uint64_t seed, std::string_view name) : key_(mix(seed + 0x9e3779b97f4a7c15ull)) {
  for (unsigned char c : name) key_ = mix((key_ ^ c) * 0x100000001b3ull);
}

uint64_t RandomStream::bits() { return mix(key_ + ++counter_ * 0x9e3779b97f4a7c15ull); }

double RandomStream::uniform() { return double(bits() >> 11) * 0x1p-53; }

uint64_t RandomStream::below(uint64_t n) {
  uint64_t limit = -n % n;  // 2^64 mod n: the values below it would come up once too often
  for (;;) {
    uint64_t value = bits();
    if (value >= limit) return value % n;
  }
}

// Box-Muller, one of the pair: simple, and one draw takes two counts whatever it gives.
float RandomStream::normal() {
  double u = 1.0 - uniform(), v = uniform();
  return float(std::sqrt(-2 * std::log(u)) * std::cos(6.283185307179586 * v));
}

}  // namespace fulgur
