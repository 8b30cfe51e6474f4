// What this machine can do, measured now: the limits every share is a share of.
#pragma once

#include <cstdint>

namespace fulgur::ops {

// Best FLOP/s of a large f32 GEMM, libtorch's or ours, whichever is faster, with threads() threads. Takes `seconds`.
double peak_flops(double seconds);

// Best bytes/s of reading `bytes` of memory once, with threads() threads.
double peak_bandwidth(int64_t bytes);

}  // namespace fulgur::ops
