// Log-probabilities of tokens under a language-model head, and the logits themselves. Logits are f32 and never held for
// more than a chunk of rows; a row's value is the same bits in any batch. Spec A.5 (head in f32). Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <utility>

namespace fulgur::ops {

// logits_NV = x_ND * weight_VD^T in f32, the weight rounded to bf16 as it is read when x is bf16. No gradient.
at::Tensor logits(const at::Tensor& x_ND, const at::Tensor& weight_VD);

// log softmax(logits)[target]; 0, without gradient, where the target is -1. targets_N int32. Differentiable in x and
// weight: the forward pass then makes the gradients of the rows' sum too (6*N*D*V FLOP, without gradient 2*N*D*V), and the
// backward scales them; rows of unequal weight cost another pass. Throws InputError on a target >= V.
at::Tensor log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N);

// log(sum exp(row)) of a row of logits: log_prob is logit - log_sum_exp, to the bit.
float log_sum_exp(const float* logits, int64_t size);

// What draws chose among, a set of tokens a row: ids[offsets[i], offsets[i + 1]), ascending; an empty one: every token. int32.
struct Kept {
  at::Tensor offsets_N1, ids;
};

// {log-probability of the target, entropy in nats} under softmax(logits / temperature) over the kept tokens alone (paper 3.1,
// "keep sampling mask"); 0 where the target is -1. The first is differentiable in x and weight: 2*N*D*V FLOP forward, 6*N*D*V
// backward. Throws InputError on a target that is not among the row's tokens.
std::pair<at::Tensor, at::Tensor> kept_log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N,
                                                const Kept& kept, double temperature);

// The same of one row of logits, to the bit; -inf where the token is not kept.
float kept_log_prob(std::span<const float> logits, std::span<const int32_t> kept, double temperature, int32_t token);

namespace reference {
std::pair<at::Tensor, at::Tensor> kept_log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N,
                                                const Kept& kept, double temperature);
at::Tensor log_prob(const at::Tensor& x_ND, const at::Tensor& weight_VD, const at::Tensor& targets_N);
}  // namespace reference

}  // namespace fulgur::ops
