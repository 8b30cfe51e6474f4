#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

struct RopeParams {
  const void* x;     // [N, H, E], strides in elements; the last dimension is contiguous
  void* y;           // [N, H, E] contiguous
  const float* cos;  // [N, P/2]
  const float* sin;  // [N, P/2]
  int64_t H, E, P, offset;
  int64_t x_row, x_head;
  bool halves;   // pair (j, j + P/2) instead of (2j, 2j + 1)
  bool inverse;  // rotate back: the gradient
  Storage type;
};

FULGUR_KERNEL(void, rope_row, (const RopeParams&, int64_t row))

}  // namespace fulgur
