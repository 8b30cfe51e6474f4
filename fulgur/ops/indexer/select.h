// Exact selection of the k best scores: larger first, then smaller index; NaN lowest, -0 equal to +0.
#pragma once

#include <cstdint>

namespace fulgur::ops {

// Writes min(k, count) indices + offset ascending to `out`, -1 behind them up to k.
void select_top_k(const float* scores, int64_t count, int64_t k, int32_t offset, int32_t* out);

}  // namespace fulgur::ops
