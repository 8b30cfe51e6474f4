#include <ATen/TensorOperators.h>

#include <cmath>

#include "fulgur/ops/adamw/adamw.h"

namespace fulgur::ops::reference {

void adamw(at::Tensor& parameter, const at::Tensor& gradient, at::Tensor& m, at::Tensor& v, const AdamwStep& s) {
  auto g = gradient * s.grad_scale;
  m.copy_(m * s.beta1 + g * (1 - s.beta1));
  v.copy_(v * s.beta2 + g * g * (1 - s.beta2));
  auto m_hat = m / (1 - std::pow(s.beta1, s.step)), v_hat = v / (1 - std::pow(s.beta2, s.step));
  parameter.copy_(parameter - (m_hat / (v_hat.sqrt() + s.eps) + parameter * s.weight_decay) * s.lr);
}

}  // namespace fulgur::ops::reference
