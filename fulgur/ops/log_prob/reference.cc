#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/index_put.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/repeat_interleave.h>

#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur::ops::reference {

at::Tensor log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N) {
  auto weight = weight_VD.to(x_ND.scalar_type()).to(at::kFloat);
  auto all = at::log_softmax(at::matmul(x_ND.to(at::kFloat), weight.t()), -1);
  auto targets = targets_N.to(at::kLong).unsqueeze(1);
  return (all.gather(1, targets.clamp_min(0)) * (targets >= 0)).squeeze(1);
}

std::pair<at::Tensor, at::Tensor> kept_log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N,
                                                const Kept& kept, double temperature) {
  auto weight = weight_VD.to(x_ND.scalar_type()).to(at::kFloat);
  auto logits_NV = at::matmul(x_ND.to(at::kFloat), weight.t()) / temperature;
  auto counts_N = (kept.offsets_N1.slice(0, 1) - kept.offsets_N1.slice(0, 0, -1)).to(at::kLong);
  auto rows = at::repeat_interleave(at::arange(counts_N.size(0), at::kLong), counts_N);
  auto allowed_NV = (counts_N == 0).unsqueeze(1).expand_as(logits_NV).clone();
  allowed_NV.index_put_({rows, kept.ids.to(at::kLong)}, at::ones({rows.size(0)}, at::kBool));
  auto all = at::log_softmax(logits_NV.masked_fill(~allowed_NV, -INFINITY), -1);
  auto targets = targets_N.to(at::kLong).unsqueeze(1), wanted = targets_N >= 0;
  auto entropy = -(all.exp() * all).masked_fill(~allowed_NV, 0).sum(1);
  return {(all.gather(1, targets.clamp_min(0)).squeeze(1)).masked_fill(~wanted, 0), entropy.masked_fill(~wanted, 0)};
}

}  // namespace fulgur::ops::reference
