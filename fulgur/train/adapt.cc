#include "fulgur/train/adapt.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/model/probe.h"
#include "fulgur/ops/adamw/adamw.h"
#include "fulgur/ops/indexer/indexer.h"

namespace fulgur {
namespace {

constexpr int64_t kSinks = 4;

// Rows drawn without repetition, ascending.
at::Tensor draw_rows(int64_t from, int64_t N, int64_t count, RandomStream& random) {
  std::vector<int64_t> rows;
  for (int64_t row = from; row < N; ++row) rows.push_back(row);
  shuffle(rows, random);
  rows.resize(std::min<size_t>(rows.size(), count));
  std::sort(rows.begin(), rows.end());
  return at::tensor(rows, at::kLong);
}

// One layer's indexer and its moments.
struct Learner {
  std::vector<at::Tensor*> weights;
  std::vector<at::Tensor> m, v;

  explicit Learner(IndexerWeights& w) {
    for (auto* tensor : {&w.wq_b, &w.wk, &w.k_norm, &w.k_norm_bias, &w.weights_proj, &w.weights_bias})
      if (tensor->defined())
        weights.push_back(tensor), m.push_back(at::zeros_like(*tensor)), v.push_back(at::zeros_like(*tensor));
  }

  double step(const at::Tensor& kl_M, double lr, int64_t number) {
    auto loss = kl_M.mean();
    loss.backward();
    double norm = 0;
    for (auto* tensor : weights) norm += ops::sum_of_squares(tensor->grad());
    double scale = std::min(1.0, 1 / (std::sqrt(norm) + 1e-6));
    c10::AutoGradMode no_grad(false);
    for (size_t i = 0; i < weights.size(); ++i) {
      ops::adamw(*weights[i], weights[i]->grad(), m[i], v[i],
                 {.lr = lr, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0, .step = number, .grad_scale = scale});
      weights[i]->mutable_grad() = at::Tensor();
    }
    return double(loss.item<float>());
  }
};

double mass_of(const at::Tensor& attention_MS, const at::Tensor& selected_MK) {
  auto index = selected_MK.clamp_min(0).to(at::kLong);
  return (attention_MS.gather(1, index) * (selected_MK >= 0)).sum(1).mean().item<float>();
}

}  // namespace

Transformer with_indexers(Transformer dense, const ModelConfig& config, uint64_t seed) {
  FULGUR_CHECK(config.has_indexer(), "[adapt] expected a config with index_topk, got none");
  auto tensors = export_weights(dense.config(), dense.weights());
  Weights fresh = init_weights(config, seed);
  for (auto& [name, tensor] : export_weights(config, fresh)) {
    if (name.find(".indexer.") == std::string::npos) continue;
    tensors[name] = tensor;
    auto is = [&](const char* end) { return config.tied_index() && name.ends_with(end); };
    if (is("weights_proj.weight")) tensors[name] = at::zeros_like(tensor);
    if (!is("wq_b.weight")) continue;
    int64_t J = config.index_n_heads, H = config.num_attention_heads, D = config.hidden_size;
    FULGUR_CHECK(H % J == 0, "[adapt] index_n_heads: expected a number that divides ", H, " heads, got ", J);
    auto q = tensors.at(name.substr(0, name.find("indexer.")) + "q_proj.weight").to(at::kFloat);
    tensors[name] = q.view({J, H / J, config.index_head_dim, D}).mean(1).reshape({-1, D});
  }
  return Transformer(config, import_weights(config, tensors, /*share_mtp=*/true));
}

AttentionKept attention_kept(const Transformer& model, const Batch& batch, int64_t k, int64_t rows, uint64_t seed) {
  c10::AutoGradMode no_grad(false);
  RandomStream random(seed, "adapt.kept");
  auto some = draw_rows(k, batch.tokens_N.size(0), rows, random);
  FULGUR_CHECK(some.numel() > 0, "[adapt] expected a sequence of more than ", k, " tokens, got ", batch.tokens_N.size(0));
  auto lengths = batch.visible_N2.select(1, 1).index_select(0, some);
  auto window = window_selection(batch, k, kSinks).index_select(0, some);
  AttentionKept kept;
  std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t layer, const DenseAttention& seen) {
    auto attention = model.mean_attention(seen, batch, some);
    kept.indexer += mass_of(attention, model.indexer_choice(layer, seen, batch, some, k));
    kept.oracle += mass_of(attention, ops::top_k(attention, lengths, k));
    kept.window += mass_of(attention, window);
  };
  model.forward(batch, {.attention = Attention::dense, .watch = &watch});
  double layers = double(model.config().num_hidden_layers);
  return {kept.indexer / layers, kept.oracle / layers, kept.window / layers};
}

void teach_indexers(Transformer& model, BatchSource& text, const IndexerTeaching& t,
                    const std::function<bool(int64_t, double)>& told) {
  std::vector<Learner> learners;
  for (auto& layer : model.weights().layers) {
    learners.emplace_back(layer.self_attn.indexer.value());
    for (auto* tensor : learners.back().weights) tensor->requires_grad_(true);
  }
  int64_t steps = t.sequences * t.passes;
  for (int64_t done = 0; done < t.sequences; ++done) {
    auto batch = text.get(done, 1).batch;
    double kl = 0;
    std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t layer, const DenseAttention& seen) {
      c10::AutoGradMode grad(true);
      for (int64_t pass = 0; pass < t.passes; ++pass) {
        RandomStream random(t.seed, cat("adapt.rows.", done, ".", layer, ".", pass));
        auto rows = draw_rows(0, batch.tokens_N.size(0), t.rows, random);
        int64_t step = done * t.passes + pass;
        double lr = t.lr * std::min(1.0, double(step + 1) / 10) * (1 - double(step) / double(steps));
        kl += learners[layer].step(model.indexer_kl(layer, seen, batch, rows), lr, step + 1);
      }
    };
    c10::AutoGradMode no_grad(false);
    model.forward(batch, {.attention = Attention::dense, .watch = &watch});
    if (!told(done + 1, kl / double(t.passes * int64_t(learners.size())))) break;
  }
  for (auto& learner : learners)
    for (auto* tensor : learner.weights) tensor->requires_grad_(false);
}

}  // namespace fulgur
