#include "fulgur/train/adapt.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/ops/adamw/adamw.h"

namespace fulgur {
namespace {

// Rows [first, first + of), some drawn without repetition, ascending.
at::Tensor draw_rows(int64_t first, int64_t of, int64_t count, RandomStream& random) {
  std::vector<int64_t> rows;
  for (int64_t row = first; row < first + of; ++row) rows.push_back(row);
  shuffle(rows, random);
  rows.resize(std::min<size_t>(rows.size(), count));
  std::sort(rows.begin(), rows.end());
  return at::tensor(rows, at::kLong);
}

}  // namespace

namespace {

// The attention's own queries as tied indexers have them, [H, keys, inputs]: beside latents the absorbed form's, [UK^T q_nope |
// q_rope].
at::Tensor attention_queries(const ModelConfig& c, const std::map<std::string, at::Tensor>& tensors, const std::string& prefix) {
  auto of = [&](const char* name) { return tensors.at(prefix + name + ".weight").to(at::kFloat); };
  int64_t H = c.num_attention_heads, nope = c.qk_nope_head_dim;
  if (!c.has_latents()) return of("q_proj").view({H, c.v_head_dim, -1});
  auto q = of("q_b_proj").view({H, nope + c.qk_rope_head_dim, -1});
  auto k_up = of("kv_b_proj").view({H, nope + c.v_head_dim, -1}).narrow(1, 0, nope);
  return at::cat({at::matmul(k_up.transpose(1, 2), q.narrow(1, 0, nope)), q.narrow(1, nope, c.qk_rope_head_dim)}, 1);
}

}  // namespace

Transformer with_indexers(Transformer dense, const ModelConfig& config, uint64_t seed) {
  FULGUR_CHECK(config.has_indexer(), "[adapt] expected a config with index_topk, got none");
  int64_t J = config.index_n_heads, H = config.num_attention_heads;
  FULGUR_CHECK(!config.tied_index() || H % J == 0, "[adapt] index_n_heads: expected a number that divides ", H, " heads, got ",
               J);
  auto tensors = export_weights(dense.config(), dense.weights());
  std::erase_if(tensors, [](const auto& tensor) { return tensor.first.find(".indexer.") != std::string::npos; });
  Weights fresh = init_weights(config, seed);
  for (auto& [name, tensor] : export_weights(config, fresh)) {
    if (name.find(".indexer.") == std::string::npos) continue;
    tensors[name] = tensor;
    auto is = [&, &name = name](const char* end) { return config.tied_index() && name.ends_with(end); };
    if (is("weights_proj.weight")) tensors[name] = at::zeros_like(tensor);
    if (!is("wq_b.weight")) continue;
    auto q = attention_queries(config, tensors, name.substr(0, name.find("indexer.")));
    tensors[name] = q.view({J, H / J, q.size(1), q.size(2)}).mean(1).flatten(0, 1).contiguous();
  }
  return Transformer(config, import_weights(config, tensors, /*share_mtp=*/true));
}

IndexerTeacher::IndexerTeacher(Transformer& model, const IndexerTeaching& teaching, ProcessGroup& group)
    : model_(model),
      teaching_(teaching),
      group_(group) {
  FULGUR_CHECK(teaching.batch % group.size() == 0, "[parallel] sequences a step: expected a multiple of ", group.size(),
               " ranks, got ", teaching.batch, "\n  hint: --batch ", group.size());
  auto& w = model.weights();
  for (size_t i = 0; i < w.layers.size() + (w.mtp ? 1 : 0); ++i) {
    auto& indexer = (i < w.layers.size() ? w.layers[i] : w.mtp->layer).self_attn.indexer.value();
    auto& layer = layers_.emplace_back();
    for (auto [name, tensor] : {std::pair("wq_b", &indexer.wq_b),
                                {"wk", &indexer.wk},
                                {"k_norm", &indexer.k_norm},
                                {"k_norm_bias", &indexer.k_norm_bias},
                                {"weights_proj", &indexer.weights_proj},
                                {"weights_bias", &indexer.weights_bias}}) {
      if (!tensor->defined()) continue;
      layer.push_back({cat(i, ".", name), tensor, at::zeros_like(*tensor), at::zeros_like(*tensor)});
      tensor->requires_grad_(true);
    }
  }
}

IndexerTeacher::~IndexerTeacher() {
  for (auto& layer : layers_)
    for (auto& learned : layer) learned.weight->requires_grad_(false), learned.weight->mutable_grad() = at::Tensor();
}

double IndexerTeacher::step(BatchSource& text) {
  int64_t share = teaching_.batch / group_.size();
  auto batch = text.get(done_ * teaching_.batch + group_.rank() * share, share).batch;
  double kl = 0;
  std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t layer, const DenseAttention& seen) {
    kl += teach_layer(layer, seen, batch);
  };
  c10::AutoGradMode no_grad(false);
  ForwardOptions options{.attention = Attention::dense, .watch = &watch};
  auto hidden = model_.forward(batch, options);
  if (model_.weights().mtp) model_.forward_mtp(batch, hidden, options);
  ++done_;
  double all = 0;
  for (const auto& of_rank : group_.gather(std::vector<double>{kl})) all += of_rank[0];
  return all / double(int64_t(layers_.size()) * teaching_.passes * teaching_.batch);
}

// The sum of its KLs over passes and sequences.
double IndexerTeacher::teach_layer(int64_t index, const DenseAttention& seen, const Batch& batch) {
  c10::AutoGradMode grad(true);
  auto& layer = layers_[index];
  int64_t share = teaching_.batch / group_.size(), first = done_ * teaching_.batch + group_.rank() * share;
  double kl = 0;
  for (int64_t pass = 0; pass < teaching_.passes; ++pass) {
    TreeSum tree;
    for (int64_t i = 0; i < share; ++i) {
      RandomStream random(teaching_.seed, cat("adapt.rows.", first + i, ".", index, ".", pass));
      auto rows = draw_rows(i * teaching_.context, teaching_.context, teaching_.rows, random);
      auto loss = model_.indexer_kl(index, seen, batch, rows).mean();
      kl += double(loss.item<float>());
      (loss / double(teaching_.batch)).backward();
      std::vector<at::Tensor> gradients;
      for (auto& learned : layer) gradients.push_back(learned.weight->grad()), learned.weight->mutable_grad() = at::Tensor();
      tree.add(std::move(gradients));
    }
    auto gradients = tree.take();
    group_.sum(gradients);
    update(layer, gradients, done_ * teaching_.passes + pass);
  }
  return kl;
}

void IndexerTeacher::update(std::vector<Learned>& layer, const std::vector<at::Tensor>& gradients, int64_t number) {
  constexpr double kWarmUp = 10;
  c10::AutoGradMode no_grad(false);
  double all = double(steps() * teaching_.passes), norm = 0;
  double lr = teaching_.lr * std::min(1.0, double(number + 1) / kWarmUp) * (1 - double(number) / all);
  for (const auto& gradient : gradients) norm += ops::sum_of_squares(gradient);
  double scale = std::min(1.0, 1 / (std::sqrt(norm) + 1e-6));
  for (size_t i = 0; i < layer.size(); ++i) {
    auto weight = layer[i].weight->detach();
    ops::adamw(weight, gradients[i], layer[i].m, layer[i].v,
               {.lr = lr, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0, .step = number + 1, .grad_scale = scale});
  }
}

std::map<std::string, at::Tensor> IndexerTeacher::state() const {
  std::map<std::string, at::Tensor> out;
  for (const auto& layer : layers_)
    for (const auto& learned : layer)
      out[learned.name] = learned.weight->detach(), out[learned.name + ".m"] = learned.m, out[learned.name + ".v"] = learned.v;
  return out;
}

void IndexerTeacher::load_state(const std::map<std::string, at::Tensor>& state, int64_t done) {
  c10::AutoGradMode no_grad(false);
  auto take = [&](const std::string& name, const at::Tensor& into) {
    auto found = state.find(name);
    FULGUR_CHECK(found != state.end() && found->second.sizes() == into.sizes(), "[adapt] ", name, ": expected a tensor ",
                 into.sizes(), ", got ", found == state.end() ? "none" : "another shape");
    into.copy_(found->second);
  };
  for (auto& layer : layers_)
    for (auto& learned : layer)
      take(learned.name, learned.weight->detach()), take(learned.name + ".m", learned.m), take(learned.name + ".v", learned.v);
  done_ = done;
}

}  // namespace fulgur
