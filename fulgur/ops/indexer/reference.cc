#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/full.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/stack.h>

#include <cmath>

#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops::reference {

at::Tensor dot_products(const at::Tensor& q, const at::Tensor& k) {
  if (k.dim() == 2) return at::einsum("njd,sd->njs", {q.to(at::kFloat), k.to(at::kFloat)});
  auto q_NGHD = q.to(at::kFloat).view({q.size(0), k.size(1), -1, q.size(2)});
  return at::einsum("nghd,sgd->nghs", {q_NGHD, k.to(at::kFloat)}).flatten(1, 2);
}

at::Tensor indexer_scores(const at::Tensor& q, const at::Tensor& k, const at::Tensor& w, const at::Tensor& visible) {
  auto dots = at::relu(dot_products(q, k));
  return at::einsum("njs,nj->ns", {dots, w}).masked_fill(visible_mask(visible, k.size(0)).logical_not(), -INFINITY);
}

at::Tensor top_k(const at::Tensor& scores_NS, const at::Tensor& lengths_N, int64_t k) {
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < scores_NS.size(0); ++i) {
    int64_t length = lengths_N[i].item<int64_t>(), kept = std::min(k, length);
    auto order = std::get<1>(scores_NS[i]
                                 .narrow(0, 0, length)
                                 .nan_to_num(-INFINITY, INFINITY, -INFINITY)
                                 .sort(/*stable=*/true, 0, /*descending=*/true));
    auto best = std::get<0>(order.narrow(0, 0, kept).sort()).to(at::kInt);
    rows.push_back(at::cat({best, at::full({k - kept}, -1, best.options())}));
  }
  return at::stack(rows);
}

}  // namespace fulgur::ops::reference
