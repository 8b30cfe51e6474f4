#include <ATen/TensorOperators.h>
#include <ATen/ops/rsqrt.h>

#include "fulgur/ops/norm/norm.h"

namespace fulgur::ops::reference {

at::Tensor rms_norm(const at::Tensor& x_ND, const at::Tensor& weight_D, double eps) {
  auto x = x_ND.to(at::kFloat);
  return (x * at::rsqrt(x.square().mean(-1, true) + eps) * weight_D).to(x_ND.scalar_type());
}

at::Tensor layer_norm(const at::Tensor& x_ND, const at::Tensor& weight_D, const at::Tensor& bias_D, double eps) {
  auto x = x_ND.to(at::kFloat);
  auto centred = x - x.mean(-1, true);
  return (centred * at::rsqrt(centred.square().mean(-1, true) + eps) * weight_D + bias_D).to(x_ND.scalar_type());
}

}  // namespace fulgur::ops::reference
