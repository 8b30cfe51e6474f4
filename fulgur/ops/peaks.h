// What this machine can do, measured now: the limits every share is a share of.
#pragma once

#include <cstdint>
#include <vector>

namespace fulgur::ops {

// Best FLOP/s of a large f32 GEMM, libtorch's or ours, whichever is faster, with threads() threads. Takes `seconds`.
double peak_flops(double seconds);

// Memory too large for any cache, outside libtorch's.
class Memory {
 public:
  explicit Memory(int64_t bytes);
  double bandwidth() const;  // bytes/s of reading it once, with threads() threads

 private:
  std::vector<int64_t> words_;
};

}  // namespace fulgur::ops
