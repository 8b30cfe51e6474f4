#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

struct IndexerParams {
  const void* q;           // [N, J, D]
  const void* k;           // [S, D]
  const float* w;          // [N, J]
  const int32_t* visible;  // [N, 2]; null for the sparse KL
  int64_t J, D;
  Storage type;  // of q and k
};

struct IndexerKlParams {
  IndexerParams indexer;
  // Dense: the attention that is imitated.
  const void* aq;              // [N, H, E]
  const void* ak;              // [S, H, E]
  const float* attention_lse;  // [N, H]
  int64_t H, E;
  float scale;
  Storage attention_type;
  // Sparse: given keys and target.
  const int32_t* selected;  // [N, K]
  const float* target;      // [N, K]
  int64_t K;
  float* kl;   // [N]
  float* lse;  // [N] log-sum-exp of the scores; written forward, read backward
  // Backward pass only; f32, start as zeros.
  const float* dkl;     // [N]
  float* dq;            // [N, J, D]
  float* dk;            // [S, D]
  float* dw;            // [N, J]
  float* contribution;  // sparse: [rows of a chunk, K, D]
};

constexpr int64_t kIndexerRows = 16;   // query rows of one block, all with the same first key
constexpr int64_t kIndexerTile = 256;  // keys a tile

// scores[r * stride + i] of rows [first, last) with keys [key, key + count).
FULGUR_KERNEL(void, indexer_score_block,
              (const IndexerParams&, int64_t first, int64_t last, int64_t key, int64_t count, float* scores, int64_t stride))
// selected[row * k + i]: the k best keys of rows [first, last), which begin at one key, ascending; -1 behind the last.
FULGUR_KERNEL(void, indexer_select_block, (const IndexerParams&, int64_t first, int64_t last, int64_t k, int32_t* selected))
// The same of one row of scores, whose first has index `offset`.
FULGUR_KERNEL(void, top_k_row, (const float* scores, int64_t count, int64_t k, int32_t offset, int32_t* selected))
FULGUR_KERNEL(void, indexer_kl_dense_block, (const IndexerKlParams&, int64_t first, int64_t last))
FULGUR_KERNEL(void, indexer_kl_dense_backward_block, (const IndexerKlParams&, int64_t first, int64_t last))
FULGUR_KERNEL(void, indexer_kl_sparse_row, (const IndexerKlParams&, int64_t row))
FULGUR_KERNEL(void, indexer_kl_sparse_backward_row, (const IndexerKlParams&, int64_t row, int64_t slot))

}  // namespace fulgur
