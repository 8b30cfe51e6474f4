// Dense attention in the MHA form, for dense stages and models before DSA (spec B). Tiled, online softmax.
//   N query rows  S key rows  H heads  E qk_nope + qk_rope  V v_head_dim
// Where k and v have fewer heads, each serves H / heads of q one after another; for a gradient they are written out for each.
// out[n,h] = sum_s p[n,h,s] v[s,h],  p = softmax over s in [begin_n, end_n) of scale * q[n,h] . k[s,h];  lse natural.
// Cost 2*H*(E+V) FLOP a pair forward, 2.5 times that backward; memory O(N). Row-invariant: key tiles of 64 count from
// the row's own first key. q, k, v are f32 or bf16; sums and softmax f32. A row without keys gives 0 and lse +inf.
// Throws InputError when shapes disagree or a range leaves the keys. Thread-safe. No gradient reaches lse.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace fulgur::ops {

// {out_NHV, lse_NH}. Keys may lie in pages (pages.h), int32 [P]; ranges then count keys of these pages, begin with one, and
// nothing takes a gradient.
std::tuple<at::Tensor, at::Tensor> dense_mla(const at::Tensor& q_NHE, const at::Tensor& k_SHE, const at::Tensor& v_SHV,
                                             const at::Tensor& visible_N2, double scale, const at::Tensor& pages = {});

namespace reference {
std::tuple<at::Tensor, at::Tensor> dense_mla(const at::Tensor& q_NHE, const at::Tensor& k_SHE, const at::Tensor& v_SHV,
                                             const at::Tensor& visible_N2, double scale);
}

}  // namespace fulgur::ops
