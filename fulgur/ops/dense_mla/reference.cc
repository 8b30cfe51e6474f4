#include <ATen/ops/einsum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops::reference {

std::tuple<at::Tensor, at::Tensor> dense_mla(const at::Tensor& q_NHE, const at::Tensor& k_SHE, const at::Tensor& v_SHV,
                                             const at::Tensor& visible_N2, double scale) {
  auto mask_N1S = visible_mask(visible_N2, k_SHE.size(0)).unsqueeze(1);
  auto scores = at::einsum("nhe,she->nhs", {q_NHE.to(at::kFloat), k_SHE.to(at::kFloat)}) * scale;
  auto masked = scores.masked_fill(mask_N1S.logical_not(), -INFINITY);
  auto any = mask_N1S.any(-1);  // [N, 1]
  auto p = at::where(any.unsqueeze(-1), masked, at::zeros_like(masked)).softmax(-1) * mask_N1S;
  auto out = at::einsum("nhs,shv->nhv", {p, v_SHV.to(at::kFloat)}).to(q_NHE.scalar_type());
  auto lse = masked.logsumexp(-1);
  return {out, lse.masked_fill(any.logical_not(), INFINITY).detach()};
}

}  // namespace fulgur::ops::reference
