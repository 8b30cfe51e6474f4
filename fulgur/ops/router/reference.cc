#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "fulgur/ops/router/router.h"

namespace fulgur::ops::reference {
namespace {

// Stable descending sort gives "larger, then smaller index".
at::Tensor best(const at::Tensor& scores, int64_t k) {
  return std::get<1>(scores.sort(/*stable=*/true, /*dim=*/-1, /*descending=*/true)).narrow(-1, 0, k);
}

}  // namespace

at::Tensor route(const at::Tensor& logits_NE, const at::Tensor& bias_E, const RouterShape& shape) {
  auto biased = at::sigmoid(logits_NE) + bias_E;
  auto grouped = biased.unflatten(1, {shape.n_group, -1});
  int64_t counted = std::min<int64_t>(2, grouped.size(2));
  auto group_score = std::get<0>(grouped.topk(counted, -1)).sum(-1);
  auto kept = at::zeros_like(group_score).scatter(1, best(group_score, shape.topk_group), 1.0);
  auto masked = grouped.masked_fill(kept.unsqueeze(-1) == 0, -INFINITY).flatten(1);
  return std::get<0>(best(masked, shape.experts_per_token).sort(-1)).to(at::kInt);
}

at::Tensor route_weights(const at::Tensor& logits_NE, const at::Tensor& ids_Nk, bool normalise, double scale) {
  auto chosen = at::sigmoid(logits_NE).gather(1, ids_Nk.to(at::kLong));
  return (normalise ? chosen / chosen.sum(-1, true) : chosen) * scale;
}

at::Tensor balance_loss(const at::Tensor& logits_NE, const at::Tensor& ids_Nk, const at::Tensor& starts) {
  int64_t experts = logits_NE.size(1), k = ids_Nk.size(1);
  std::vector<at::Tensor> losses;
  for (int64_t i = 0; i + 1 < starts.size(0); ++i) {
    int64_t first = starts[i].item<int64_t>(), rows = starts[i + 1].item<int64_t>() - first;
    auto scores = at::sigmoid(logits_NE.narrow(0, first, rows));
    auto share = (scores / scores.sum(-1, true)).mean(0);
    auto ids = ids_Nk.narrow(0, first, rows).to(at::kLong).flatten();
    auto count =
        at::zeros({experts}, share.options().requires_grad(false)).index_add(0, ids, at::full_like(ids, 1).to(at::kFloat));
    losses.push_back((count * (double(experts) / double(k * rows)) * share).sum());
  }
  return at::stack(losses);
}

}  // namespace fulgur::ops::reference
