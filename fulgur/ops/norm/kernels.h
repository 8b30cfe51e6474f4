#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

struct NormParams {
  const void* x;         // [N, D]
  const void* residual;  // [N, D] or null; added to x in f32 before anything else
  const float* weight;   // [D]
  const float* bias;     // [D] for LayerNorm, null for RMSNorm
  void* y;               // [N, D]
  void* sum;             // [N, D] x + residual rounded to the type; null without residual
  float* mean;           // [N] LayerNorm only
  float* rstd;           // [N]
  int64_t D;
  float eps;
  Storage type;  // of x, residual, y, sum
};

struct NormBackwardParams {
  const void* dy;       // [N, D]
  const void* dsum;     // [N, D] or null: gradient that reaches x + residual on the other way
  const void* x;        // [N, D] what was normalised
  const float* weight;  // [D]
  const float* mean;    // [N] or null
  const float* rstd;    // [N]
  void* dx;             // [N, D]
  int64_t D;
  Storage type;  // of dy, dsum, x, dx
};

FULGUR_KERNEL(void, norm_row, (const NormParams&, int64_t row))
// Adds what the row gives to dweight and dbias (null for RMSNorm).
FULGUR_KERNEL(void, norm_backward_row, (const NormBackwardParams&, int64_t row, float* dweight, float* dbias))
// Columns [first, last) of the sum of rows [count, D], in ascending order.
FULGUR_KERNEL(void, add_rows, (const float* rows, int64_t count, int64_t D, float* total, int64_t first, int64_t last))

}  // namespace fulgur
