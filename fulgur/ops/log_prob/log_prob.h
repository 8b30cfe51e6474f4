// Log-probabilities of tokens under a language-model head, and the logits themselves. Logits are f32 and never held for
// more than a chunk of rows; a row's value is the same bits in any batch. Spec A.5 (head in f32). Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

// logits_NV = x_ND * weight_VD^T in f32, the weight rounded to bf16 as it is read when x is bf16. No gradient.
at::Tensor logits(const at::Tensor& x_ND, const at::Tensor& weight_VD);

// log softmax(logits)[target]; 0, without gradient, where the target is -1. targets_N int32. Differentiable in x and
// weight: the forward pass then makes the gradients of the rows' sum too (6*N*D*V FLOP, without gradient 2*N*D*V), and the
// backward scales them; rows of unequal weight cost another pass. Throws InputError on a target >= V.
at::Tensor log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N);

// log(sum exp(row)) of a row of logits: log_prob is logit - log_sum_exp, to the bit.
float log_sum_exp(const float* logits, int64_t size);

namespace reference {
at::Tensor log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N);
}

}  // namespace fulgur::ops
