#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/pages.h"

namespace fulgur {

struct SparseMlaParams {
  const void* q;            // [N, all heads, Cq], from the first of H heads that share keys
  const void* kv;           // [S, kv_row], from their C numbers; or rows of fp8 (cached_keys.h), forward only
  const int32_t* selected;  // [N, K] ascending, -1 behind the last
  const int32_t* rows;      // [N, K] where these keys lie
  void* out;                // [N, all heads, R]
  float* lse;               // [N, all heads]
  float* target;            // [N, K]; forward only
  int64_t H, Cq, C, R, K;   // of a key its last Cq numbers are scored
  int64_t all_heads, kv_row;
  float scale;
  Storage type;  // of q, kv, out, dout
  bool fp8;
  // Backward pass only.
  const void* dout;  // [N, all heads, R]
  float* dq;         // [N, all heads, Cq]
};

constexpr int64_t kHeadGroup = 32;  // the target sums heads in groups

// A row, all of it.
FULGUR_KERNEL(void, sparse_mla_row, (const SparseMlaParams&, int64_t row))
// The same in parts, so that few rows keep all threads at work: scores [H, padded_keys(K)] with the row's own keys [first, last);
// each head's become probabilities; then columns [first, last) of the values, and the target.
FULGUR_KERNEL(void, sparse_mla_scores, (const SparseMlaParams&, int64_t row, int64_t first, int64_t last, float* scores))
FULGUR_KERNEL(void, sparse_mla_softmax, (const SparseMlaParams&, int64_t row, int64_t head, float* scores))
FULGUR_KERNEL(void, sparse_mla_values, (const SparseMlaParams&, int64_t row, int64_t first, int64_t last, const float* scores))
FULGUR_KERNEL(void, sparse_mla_target, (const SparseMlaParams&, int64_t row, const float* scores))
// dq of the row, and the factors of its keys' gradients: probabilities by dout, then score gradients by q.
FULGUR_KERNEL(void, sparse_mla_backward_row,
              (const SparseMlaParams&, int64_t row, float* coefficients, int64_t stride, float* lines))

}  // namespace fulgur
