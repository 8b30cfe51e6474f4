// Sparse attention in the absorbed (MQA) form over gathered keys (spec B, D.5, E.3; paper 2.1, eq. 2).
//   N query rows  S cached rows  H heads  C = R + P: [latent R | rope P]  K index_topk
// out[n,h] = sum_i p[n,h,i] kv[s_i, :R],  p = softmax over the row's selected keys of scale * q[n,h] . kv[s_i].
// Cost 2*H*(C+R) FLOP a selected key; memory O(N*K) however long the context. Row-invariant. Thread-safe.
// q and kv are f32 or bf16 (the same); sums and softmax f32, p never rounded. Padding (-1) is never read. A row without
// keys gives 0 and lse +inf. Throws InputError when shapes disagree, an index leaves the rows or is not above the one before.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace fulgur::ops {

// selected_NK: int32, ascending rows of kv, -1 behind a row's last. Returns {out_NHR, lse_NH (natural log), target_NK}: target is
// the attention averaged over heads, the constant the indexer is trained towards. No gradient reaches lse and target.
// kv [S, R + C], or [S, G, R + C] of groups that divide the heads, as in grouped-query attention: the values are no part of the
// keys but lie before them.
// Keys may lie in pages (pages.h), int32 [P]; selected_NK then counts keys of these pages, and nothing takes a gradient. kv
// may be rows of fp8 (cached_keys.h) there.
std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_mla(const at::Tensor& q_NHC, const at::Tensor& kv_SC,
                                                          const at::Tensor& selected_NK, int64_t value_dim, double scale,
                                                          const at::Tensor& pages = {});

namespace reference {
std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_mla(const at::Tensor& q_NHC, const at::Tensor& kv_SC,
                                                          const at::Tensor& selected_NK, int64_t value_dim, double scale);
}

}  // namespace fulgur::ops
