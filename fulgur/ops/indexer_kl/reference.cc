#include <ATen/TensorOperators.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/where.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops::reference {
namespace {

at::Tensor all_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w) {
  auto dots = at::relu(dot_products(q, k));
  return at::einsum("njs,nj->ns", {dots, w});
}

// KL of rows where `mask` is true; rows without keys give 0.
at::Tensor masked_kl(const at::Tensor& p, const at::Tensor& scores, const at::Tensor& mask) {
  auto any = mask.any(-1, true);
  auto safe = at::where(any, scores.masked_fill(mask.logical_not(), -INFINITY), at::zeros_like(scores));
  auto log_q = at::log_softmax(safe, -1).masked_fill(mask.logical_not(), 0);
  return ((at::xlogy(p, p) - p * log_q) * mask).sum(-1);
}

}  // namespace

at::Tensor indexer_kl_dense(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& aq,
                            const at::Tensor& ak, const at::Tensor& lse, const at::Tensor& visible, double scale) {
  auto mask = visible_mask(visible, k.size(0));
  auto attention = dot_products(aq, ak) * scale;
  auto p = ((attention - lse.unsqueeze(-1)).exp() * mask.unsqueeze(1)).mean(1).detach();
  return masked_kl(p, all_scores(q, k, w), mask);
}

at::Tensor indexer_kl_sparse(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& selected,
                             const at::Tensor& target) {
  auto index = selected.to(at::kLong);
  auto mask = index >= 0;
  return masked_kl(target, all_scores(q, k, w).gather(1, index.clamp_min(0)), mask);
}

}  // namespace fulgur::ops::reference
