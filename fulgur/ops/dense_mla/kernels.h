#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/pages.h"

namespace fulgur {

struct DenseMlaParams {
  const void* q;           // [N, H, E]
  const void* k;           // [S, G, E]
  const void* v;           // [S, G, V]
  const int32_t* visible;  // [N, 2]
  void* out;               // [N, H, V]
  float* lse;              // [N, H]
  int64_t H, G, E, V;      // G divides H; the backward pass wants H
  float scale;
  Storage type;                    // of q, k, v, out
  const int32_t* pages = nullptr;  // where keys lie, every range beginning with one; forward only
  // Backward pass only; gradients are f32 and start as zeros.
  const void* dout;  // [N, H, V]
  float* dq;         // [N, H, E]
  float* dk;         // [S, H, E]
  float* dv;         // [S, H, V]
};

constexpr int64_t kDenseMlaRows = 128;  // query rows of one block, all with the same first key

// One head, rows [first, last) with equal begin, last - first <= kDenseMlaRows.
FULGUR_KERNEL(void, dense_mla_block, (const DenseMlaParams&, int64_t head, int64_t first, int64_t last))
// Adds the block's share to dq, dk and dv.
FULGUR_KERNEL(void, dense_mla_backward_block, (const DenseMlaParams&, int64_t head, int64_t first, int64_t last))

}  // namespace fulgur
