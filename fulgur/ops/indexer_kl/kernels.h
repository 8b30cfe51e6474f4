#pragma once

#include <cstdint>

#include "fulgur/ops/indexer/kernels.h"

namespace fulgur {

struct IndexerKlParams {
  IndexerParams indexer;
  // Dense: the attention that is imitated.
  const void* aq;              // [N, H, E]
  const void* ak;              // [S, HK, E], head h's at h HK / H
  const float* attention_lse;  // [N, H]
  int64_t H, HK, E;
  float scale;
  Storage attention_type;
  // Sparse: given keys and target.
  const int32_t* selected;  // [N, K] ascending, -1 behind the last
  const float* target;      // [N, K]
  int64_t K;
  double* lse;  // [N] log-sum-exp of the scores; dense only
  float* kl;    // [N]
  // Gradients of sum(dkl * kl), f32, start as zeros; none where dkl is null.
  const float* dkl;  // [N]
  float* dq;         // [N, J, D]
  float* dk;         // [S, D]; null where keys have groups
  float* dw;         // [N, J]
};

constexpr int64_t kKlRows = 128;   // query rows of one block, all with the same first key
constexpr int64_t kKlStripes = 8;  // tile i of a block's keys belongs to stripe i % kKlStripes

// What one stripe of a block adds to its rows.
struct KlStripe {
  double* sums;  // [rows, 3]: sum p log p, sum p I, sum p
  float* dq;     // [rows, J, D]
  float* dw;     // [rows, J]
};

// lse of rows [first, last), at most kIndexerRows with the same first key.
FULGUR_KERNEL(void, indexer_lse_block, (const IndexerKlParams&, int64_t first, int64_t last))
// Adds a stripe's share to `out` and, of its own keys, to dk.
FULGUR_KERNEL(void, indexer_kl_stripe, (const IndexerKlParams&, int64_t first, int64_t last, int64_t stripe, const KlStripe& out))
// kl of the row; its gradients, and the factors of its keys': what score gradients become at each head by q. `dots` and, with
// gradients, `lines` are for them; a row of dots is `stride` long.
FULGUR_KERNEL(void, indexer_kl_sparse_row, (const IndexerKlParams&, int64_t row, float* dots, int64_t stride, float* lines))

}  // namespace fulgur
