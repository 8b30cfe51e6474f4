#pragma once

#include <cstdint>

#include "fulgur/ops/formats.h"
#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/pages.h"

namespace fulgur {

struct IndexerParams {
  const void* q;           // [N, J, D]
  const void* k;           // [S, G, D], or pages of 64 keys: as cached_keys.h has them, or key by key
  const float* w;          // [N, J]
  const int32_t* visible;  // [N, 2]; null where keys are given
  int64_t J, D;
  Storage type;                    // of q and k
  const int32_t* pages = nullptr;  // where keys lie, every range beginning with one
  KeyFormat format = KeyFormat::plain;
  int64_t G = 1;                       // groups: heads [g J / G, (g + 1) J / G) see the keys' group g
  int64_t key_row = 0, key_group = 0;  // of pages key by key: from a key to the next, from a group to the next; else 0

  int64_t key_size() const { return G * D; }
  int64_t page_bytes() const {
    if (key_row > 0) return kPageKeys * key_row * (type == Storage::f32 ? 4 : 2);
    return kPageKeys * (format != KeyFormat::plain ? key_size() + 4 : key_size() * (type == Storage::f32 ? 4 : 2));
  }
  const uint8_t* page(int64_t key) const {  // that of a key of the call
    return static_cast<const uint8_t*>(k) + pages[key / kPageKeys] * page_bytes();
  }
};

constexpr int64_t kIndexerRows = 8;    // query rows of one block, all with the same first key
constexpr int64_t kIndexerTile = 256;  // keys a tile

// scores[r * stride + i] of rows [first, last) with keys [key, key + count).
FULGUR_KERNEL(void, indexer_score_block,
              (const IndexerParams&, int64_t first, int64_t last, int64_t key, int64_t count, float* scores, int64_t stride))
// selected[row * k + i]: the k best keys of rows [first, last), which begin at one key, ascending; -1 behind the last.
FULGUR_KERNEL(void, indexer_select_block, (const IndexerParams&, int64_t first, int64_t last, int64_t k, int32_t* selected))
// The same of one row of scores, whose first has index `offset`.
FULGUR_KERNEL(void, top_k_row, (const float* scores, int64_t count, int64_t k, int32_t offset, int32_t* selected))

}  // namespace fulgur
