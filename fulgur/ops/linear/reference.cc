#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>

#include "fulgur/ops/linear/linear.h"

namespace fulgur::ops::reference {
namespace {

at::Tensor as_used(const at::Tensor& weight, const at::Tensor& x) { return weight.to(x.scalar_type()).to(at::kFloat); }

}  // namespace

at::Tensor linear(const at::Tensor& x_NI, const at::Tensor& weight_OI) {
  return at::matmul(x_NI.to(at::kFloat), as_used(weight_OI, x_NI).t()).to(x_NI.scalar_type());
}

at::Tensor head_linear(const at::Tensor& x_NHI, const at::Tensor& weight_HIO) {
  auto y_HNO = at::matmul(x_NHI.to(at::kFloat).transpose(0, 1), as_used(weight_HIO, x_NHI));
  return y_HNO.transpose(0, 1).contiguous().to(x_NHI.scalar_type());
}

}  // namespace fulgur::ops::reference
