#include "fulgur/train/optimizer.h"

#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/ops/adamw/adamw.h"

namespace fulgur {

Optimizer::Optimizer(Weights& weights, const StageConfig& config) : config_(config) {
  for (const auto& parameter : parameters(weights)) {
    bool wanted = parameter.trained() && (is_sparse(config.kind) || parameter.indexer() == (config.kind == StageKind::warmup));
    parameter.tensor->requires_grad_(wanted);
    parameter.tensor->mutable_grad() = at::Tensor();
    if (wanted)
      entries_.push_back({parameter, at::zeros_like(*parameter.tensor).detach(), at::zeros_like(*parameter.tensor).detach()});
  }
}

double Optimizer::norm(bool indexer) const {
  double total = 0;
  for (const auto& entry : entries_)
    if (entry.parameter.indexer() == indexer && entry.parameter.tensor->grad().defined())
      total += ops::sum_of_squares(entry.parameter.tensor->grad().contiguous());
  return std::sqrt(total);
}

Optimizer::Norms Optimizer::norms() const { return {norm(false), norm(true)}; }

void Optimizer::step(int64_t step, const Norms& norms) {
  double share = schedule_share(config_, step);
  auto scale = [&](double norm) { return norm > config_.clip ? config_.clip / norm : 1.0; };
  for (auto& [parameter, m, v] : entries_) {
    if (!parameter.tensor->grad().defined()) continue;
    bool indexer = parameter.indexer();
    auto weight = parameter.tensor->detach();
    ops::adamw(weight, parameter.tensor->grad().contiguous(), m, v,
               {.lr = share * (indexer ? config_.indexer_lr : config_.lr),
                .beta1 = config_.beta1,
                .beta2 = config_.beta2,
                .eps = config_.eps,
                .weight_decay = parameter.decayed() ? config_.weight_decay : 0,
                .step = step + 1,
                .grad_scale = scale(indexer ? norms.indexer : norms.model)});
  }
  discard();
}

void Optimizer::discard() {
  for (auto& entry : entries_) entry.parameter.tensor->mutable_grad() = at::Tensor();
}

std::string Optimizer::largest_gradient() const {
  std::string name;
  double largest = -1;
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {  // backward: the first a gradient reaches
    const auto& grad = entry->parameter.tensor->grad();
    if (!grad.defined()) continue;
    double squares = ops::sum_of_squares(grad.contiguous());
    if (!std::isfinite(squares)) return entry->parameter.name;
    if (squares > largest) largest = squares, name = entry->parameter.name;
  }
  return name;
}

std::vector<at::Tensor*> Optimizer::trained() const {
  std::vector<at::Tensor*> out;
  for (const auto& entry : entries_) out.push_back(entry.parameter.tensor);
  return out;
}

std::map<std::string, at::Tensor> Optimizer::state() const {
  std::map<std::string, at::Tensor> out;
  for (const auto& [parameter, m, v] : entries_) out["m." + parameter.name] = m, out["v." + parameter.name] = v;
  return out;
}

void Optimizer::load_state(const std::map<std::string, at::Tensor>& state) {
  for (auto& [parameter, m, v] : entries_)
    for (auto [kind, tensor] : {std::pair{"m.", &m}, std::pair{"v.", &v}}) {
      auto found = state.find(kind + parameter.name);
      FULGUR_CHECK(found != state.end() && found->second.sizes() == tensor->sizes(), "[checkpoint] expected optimiser state ",
                   kind, parameter.name, " ", tensor->sizes(), ", got none of that shape");
      tensor->copy_(found->second);
    }
}

}  // namespace fulgur
