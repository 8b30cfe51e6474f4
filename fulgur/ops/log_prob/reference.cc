#include <ATen/TensorOperators.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/matmul.h>

#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur::ops::reference {

at::Tensor log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N) {
  auto weight = weight_VD.to(x_ND.scalar_type()).to(at::kFloat);
  auto all = at::log_softmax(at::matmul(x_ND.to(at::kFloat), weight.t()), -1);
  auto targets = targets_N.to(at::kLong).unsqueeze(1);
  return (all.gather(1, targets.clamp_min(0)) * (targets >= 0)).squeeze(1);
}

}  // namespace fulgur::ops::reference
