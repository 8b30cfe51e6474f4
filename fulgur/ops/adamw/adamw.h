// AdamW with decoupled decay (Loshchilov & Hutter 2019), one parameter at a time, and the norm for clipping.
// All f32, in place, elementwise: results do not depend on the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

struct AdamwStep {
  double lr, beta1, beta2, eps, weight_decay;
  int64_t step;       // from 1, for the bias correction
  double grad_scale;  // the gradient is multiplied by it first: clipping
};

// m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2; p -= lr * (m^ / (sqrt(v^) + eps) + weight_decay * p).
// All four contiguous f32 of one size. 28 bytes an element.
void adamw(at::Tensor& parameter, const at::Tensor& gradient, at::Tensor& m, at::Tensor& v, const AdamwStep& step);

// Sum of squares in a fixed order: blocks of 4096 in f32 lanes, blocks added in double.
double sum_of_squares(const at::Tensor& tensor);

namespace reference {
void adamw(at::Tensor& parameter, const at::Tensor& gradient, at::Tensor& m, at::Tensor& v, const AdamwStep& step);
}

}  // namespace fulgur::ops
