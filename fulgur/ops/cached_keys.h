// Keys as a cache of pages keeps them (pages.h), for inference: what is written here, sparse_mla and indexer_top_k read.
//   N new keys  R kv_lora_rank  P qk_rope_head_dim  D index_head_dim
// Latent rows follow one another, one a key:
//   plain  [S, R + P] f32 or bf16
//   fp8    bytes [S, R + 4 ceil(R / 128) + 2 P]: R e4m3, an f32 scale for each 128 (a power of two), P bf16; at the published
//          sizes 656 bytes (spec D.4)
// Indexer keys lie page by page:
//   plain  [pages, D, 64] f32 or bf16, side by side
//   fp8    bytes [pages, 64 (D + 4)]: 64 keys of D e4m3, then their f32 scales, powers of two (spec D.6)
//   int8   int8 [pages, 64 (D + 4)]: [D / 4, 64, 4] whole numbers to +-127 with 128 added, then the 64 keys' f32 scales
// What fp8 holds is exact in bf16 and f32, so a result has the bits of a plain cache with these values. By int8 keys the queries
// are rounded to integers too, each head by itself. Throws InputError when sizes do not fit; quantised indexer keys
// have at most 128 numbers, a multiple of 4.
#pragma once

#include <ATen/core/Tensor.h>

#include "fulgur/ops/formats.h"

namespace fulgur::ops {

at::Tensor empty_latents(int64_t pages, int64_t R, int64_t P, KeyFormat format, at::ScalarType type);
at::Tensor empty_index_keys(int64_t pages, int64_t D, KeyFormat format, at::ScalarType type);

// Key i goes into row slots_N[i] (int64). The format is what the tensor's type says.
void store_latents(const at::Tensor& latents, const at::Tensor& slots_N, const at::Tensor& c_NR, const at::Tensor& k_rope_NP);
void store_index_keys(const at::Tensor& keys, const at::Tensor& slots_N, const at::Tensor& k_ND);

// Rows of fp8 as written, and back to [N, R + P] f32.
at::Tensor pack_latents(const at::Tensor& c_NR, const at::Tensor& k_rope_NP);
at::Tensor unpack_latents(const at::Tensor& bytes, int64_t R, int64_t P);

// The first `count` keys of one page into another.
void copy_index_keys(const at::Tensor& keys, int64_t from_page, int64_t to_page, int64_t count);

}  // namespace fulgur::ops
