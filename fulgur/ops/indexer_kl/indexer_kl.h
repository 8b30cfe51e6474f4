// The lightning indexer's training towards the attention it selects for (paper 2.1.1, eq. 3 and 4; spec E.3).
//   N query rows  S key rows  J index_n_heads  D index_head_dim  K index_topk  H attention heads  E qk head size
// KL(p || softmax(I)) of each row, [N] f32, p a constant, I the scores of indexer.h. Differentiable in q, k, w; where one of
// them wants a gradient, the forward pass makes all three for equal weights of the rows (what a sum of rows hands back), and
// scales them later; other weights cost a second pass. Throws InputError when shapes disagree or a range leaves the keys.
// Keys may come in groups, [S, G, D] as in indexer.h: then they are constants. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

// Over a row's visible keys, with p = mean over heads of exp(scale * aq[t,h] . ak[s,h] - lse[t,h]). A pair costs
// 2*(H*E + J*D) FLOP, with gradients 2*(H*E + 4*J*D). Memory O(1) a row, never [N, S].
at::Tensor indexer_kl_dense(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ, const at::Tensor& aq_NHE,
                            const at::Tensor& ak_SHE, const at::Tensor& lse_NH, const at::Tensor& visible_N2, double scale);

// Over a row's selected keys int32 [N, K] (-1 padding), with p a given target [N, K] (sparse_mla's). A pair costs 2*J*D FLOP,
// with gradients three times that. Memory O(J * K) a thread.
at::Tensor indexer_kl_sparse(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ,
                             const at::Tensor& selected_NK, const at::Tensor& target_NK);

namespace reference {
at::Tensor indexer_kl_dense(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ, const at::Tensor& aq_NHE,
                            const at::Tensor& ak_SHE, const at::Tensor& lse_NH, const at::Tensor& visible_N2, double scale);
at::Tensor indexer_kl_sparse(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ,
                             const at::Tensor& selected_NK, const at::Tensor& target_NK);
}  // namespace reference

}  // namespace fulgur::ops
