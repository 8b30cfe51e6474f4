#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "fulgur/ops/sparse_mla/sparse_mla.h"

namespace fulgur::ops::reference {

std::tuple<at::Tensor, at::Tensor, at::Tensor> sparse_mla(const at::Tensor& q_NHC, const at::Tensor& kv_SC,
                                                          const at::Tensor& selected_NK, int64_t value_dim, double scale) {
  int64_t N = selected_NK.size(0), K = selected_NK.size(1);
  auto index = selected_NK.to(at::kLong);
  auto valid_NK = index >= 0;
  auto rows_NKC = kv_SC.index_select(0, index.clamp_min(0).flatten()).view({N, K, kv_SC.size(1)}).to(at::kFloat);
  rows_NKC = at::where(valid_NK.unsqueeze(-1), rows_NKC, at::zeros_like(rows_NKC));
  auto scores = at::einsum("nhc,nkc->nhk", {q_NHC.to(at::kFloat), rows_NKC}) * scale;
  auto masked = scores.masked_fill(valid_NK.unsqueeze(1).logical_not(), -INFINITY);
  auto any = valid_NK.any(-1, true);  // [N, 1]
  auto p = at::where(any.unsqueeze(-1), masked, at::zeros_like(masked)).softmax(-1) * valid_NK.unsqueeze(1);
  auto out = at::einsum("nhk,nkr->nhr", {p, rows_NKC.narrow(2, 0, value_dim)}).to(q_NHC.scalar_type());
  auto lse = masked.logsumexp(-1).masked_fill(any.logical_not(), INFINITY);
  return {out, lse.detach(), p.mean(1).detach()};
}

}  // namespace fulgur::ops::reference
