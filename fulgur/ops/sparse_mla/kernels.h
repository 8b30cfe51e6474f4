#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/pages.h"

namespace fulgur {

struct SparseMlaParams {
  const void* q;            // [N, H, C]
  const void* kv;           // [S, C]
  const int32_t* selected;  // [N, K] ascending, -1 behind the last
  void* out;                // [N, H, R]
  float* lse;               // [N, H]
  float* target;            // [N, K]; forward only
  int64_t H, C, R, K;
  float scale;
  Storage type;                    // of q, kv, out, dout
  const int32_t* pages = nullptr;  // where keys lie; forward only
  // Backward pass only.
  const void* dout;  // [N, H, R]
  float* dq;         // [N, H, C]
};

constexpr int64_t kHeadGroup = 32;  // the target sums heads in groups, so that few rows can be shared among threads

// Heads [first, last) of a row, `first` being a multiple of kHeadGroup; shares_GK[g] becomes what group g of them adds to the
// target's keys.
FULGUR_KERNEL(void, sparse_mla_heads, (const SparseMlaParams&, int64_t row, int64_t first, int64_t last, float* shares_GK))
// The row's target, when all its heads are done.
FULGUR_KERNEL(void, sparse_mla_target, (const SparseMlaParams&, int64_t row, const float* shares_GK))
// dq of the row, and the factors of its keys' gradients: probabilities by dout, then score gradients by q.
FULGUR_KERNEL(void, sparse_mla_backward_row,
              (const SparseMlaParams&, int64_t row, float* coefficients, int64_t stride, float* lines))

}  // namespace fulgur
