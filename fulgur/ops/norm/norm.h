// Normalisations over the last dimension, row-invariant, with gradients. Sums in f32; weights and biases are f32.
// x is f32 or bf16 with any leading dimensions; the output has its type. Cost ~6 FLOP and two passes an element.
// Throws InputError when shapes disagree. Thread-safe. Source: spec A.5.
#pragma once

#include <ATen/core/Tensor.h>

#include <utility>

namespace fulgur::ops {

// y = x / sqrt(mean(x^2) + eps) * weight
at::Tensor rms_norm(const at::Tensor& x_ND, const at::Tensor& weight_D, double eps);

// {y, sum}: sum = x + residual; y = rms_norm of the unrounded f32 sum, while `sum` is rounded to the type.
std::pair<at::Tensor, at::Tensor> add_rms_norm(const at::Tensor& x_ND, const at::Tensor& residual_ND, const at::Tensor& weight_D,
                                               double eps);

// y = (x - mean) / sqrt(var + eps) * weight + bias
at::Tensor layer_norm(const at::Tensor& x_ND, const at::Tensor& weight_D, const at::Tensor& bias_D, double eps);

namespace reference {
at::Tensor rms_norm(const at::Tensor& x_ND, const at::Tensor& weight_D, double eps);
at::Tensor layer_norm(const at::Tensor& x_ND, const at::Tensor& weight_D, const at::Tensor& bias_D, double eps);
}  // namespace reference

}  // namespace fulgur::ops
