#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/silu.h>

#include "fulgur/ops/experts/experts.h"

namespace fulgur::ops::reference {

at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return (at::silu(gate.to(at::kFloat)) * up.to(at::kFloat)).to(gate.scalar_type());
}

at::Tensor experts(const at::Tensor& x_ND, const at::Tensor& ids_Nk, const at::Tensor& weights_Nk, const at::Tensor& gate_EID,
                   const at::Tensor& up_EID, const at::Tensor& down_EDI, const at::Tensor& shared_ND) {
  auto type = x_ND.scalar_type();
  auto used = [&](const at::Tensor& weight) { return weight.to(type).to(at::kFloat); };
  auto y = x_ND.to(at::kFloat) * 0;
  auto x = x_ND.to(at::kFloat);
  for (int64_t e = 0; e < gate_EID.size(0); ++e) {
    auto gate = at::matmul(x, used(gate_EID[e]).t()).to(type), up = at::matmul(x, used(up_EID[e]).t()).to(type);
    auto out = at::matmul(swiglu(gate, up).to(at::kFloat), used(down_EDI[e]).t()).to(type).to(at::kFloat);
    y = y + out * (weights_Nk * (ids_Nk == e)).sum(1, true);
  }
  return (y + shared_ND.to(at::kFloat)).to(type);
}

}  // namespace fulgur::ops::reference
