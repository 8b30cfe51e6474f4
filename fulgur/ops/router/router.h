// Mixture-of-experts routing: sigmoid scores, groups, a correction bias that only selects. Spec A.4. Row-invariant,
// thread-safe. logits_NE are f32; ids are int32, ascending in each row. Throws InputError when the numbers do not fit.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

struct RouterShape {
  int64_t n_group, topk_group, experts_per_token;
};

// The chosen experts: best `topk_group` groups by the sum of their two largest biased scores, then the best experts in
// them; ties go to the smaller index. No gradient.
at::Tensor route(const at::Tensor& logits_NE, const at::Tensor& bias_E, const RouterShape& shape);

// Their weights: sigmoid(logit) at the chosen experts, divided by the sum (when normalise), times scale. Differentiable
// in the logits; `ids` may be replayed ones (keep routing).
at::Tensor route_weights(const at::Tensor& logits_NE, const at::Tensor& ids_Nk, bool normalise, double scale);

// One number for each sequence, rows [starts[i], starts[i+1]): sum_e f_e P_e, f_e = E/(k T) * tokens that chose e,
// P_e = mean over tokens of s_e / sum s. Differentiable in the logits.
at::Tensor balance_loss(const at::Tensor& logits_NE, const at::Tensor& ids_Nk, const at::Tensor& starts);

namespace reference {
at::Tensor route(const at::Tensor& logits_NE, const at::Tensor& bias_E, const RouterShape& shape);
at::Tensor route_weights(const at::Tensor& logits_NE, const at::Tensor& ids_Nk, bool normalise, double scale);
at::Tensor balance_loss(const at::Tensor& logits_NE, const at::Tensor& ids_Nk, const at::Tensor& starts);
}  // namespace reference

}  // namespace fulgur::ops
