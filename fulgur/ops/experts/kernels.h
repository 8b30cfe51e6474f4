#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

struct SwigluParams {
  const void* gate;
  const void* up;
  const void* dy;  // null in the forward pass
  void* y;         // silu(gate) * up; in the backward pass too where not null
  void* dgate;
  void* dup;
  Storage type;  // of all of them
};

struct CombineParams {
  const void* rows;      // [N * k, D] expert outputs in grouped order
  const int32_t* place;  // [N, k] where a token's i-th output stands in rows
  const float* weights;  // [N, k]; null: all one
  const void* last;      // [N, D] added after the experts, or null
  void* y;               // [N, D]
  int64_t k, D;
  Storage type;
};

struct SpreadParams {
  const void* dy;        // [N, D]
  const void* rows;      // [N * k, D] expert outputs
  const int32_t* place;  // [N, k]
  const float* weights;  // [N, k]
  void* drows;           // [N * k, D] = weight * dy
  float* dweights;       // [N, k] = dy . row
  int64_t k, D;
  Storage type;
};

FULGUR_KERNEL(void, swiglu_block, (const SwigluParams&, int64_t first, int64_t last))
FULGUR_KERNEL(void, combine_row, (const CombineParams&, int64_t row))
FULGUR_KERNEL(void, spread_row, (const SpreadParams&, int64_t row))

}  // namespace fulgur
