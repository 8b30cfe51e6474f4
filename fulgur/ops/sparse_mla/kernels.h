#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

struct SparseMlaParams {
  const void* q;            // [N, H, C]
  const void* kv;           // [S, C]
  const int32_t* selected;  // [N, K], -1 padding
  void* out;                // [N, H, R]
  float* lse;               // [N, H]
  float* target;            // [N, K]; forward only
  int64_t H, C, R, K;
  float scale;
  Storage type;  // of q, kv, out, dout
  // Backward pass only.
  const void* dout;     // [N, H, R]
  float* dq;            // [N, H, C]
  float* contribution;  // [rows of a chunk, K, C]: what each query adds to its keys
  float* dkv;           // [S, C], starts as zeros
};

constexpr int64_t kHeadGroup = 32;  // the target sums heads in groups, so that few rows can be shared among threads

// Heads [first, last) of a row, `first` being a multiple of kHeadGroup; shares_GK[g] becomes what group g of them adds to the
// target's keys.
FULGUR_KERNEL(void, sparse_mla_heads, (const SparseMlaParams&, int64_t row, int64_t first, int64_t last, float* shares_GK))
// The row's target, when all its heads are done.
FULGUR_KERNEL(void, sparse_mla_target, (const SparseMlaParams&, int64_t row, const float* shares_GK))
// dq of the row, and its keys' gradients into contribution[slot].
FULGUR_KERNEL(void, sparse_mla_backward_row, (const SparseMlaParams&, int64_t row, int64_t slot))
// dkv[:, first:last] += contributions of rows [row0, row0 + rows), in ascending order.
FULGUR_KERNEL(void, sparse_mla_scatter, (const SparseMlaParams&, int64_t row0, int64_t rows, int64_t first, int64_t last))

}  // namespace fulgur
