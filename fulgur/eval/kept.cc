#include "fulgur/eval/kept.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/model/probe.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

constexpr int64_t kSinks = 4, kRows = 64;

double nll_of(const Transformer& model, const HeldOut& document, const ForwardOptions& options) {
  c10::AutoGradMode no_grad(false);
  auto log_prob_N = ops::log_prob(model.forward(document.batch, options), model.weights().lm_head, document.next_N);
  return -log_prob_N.sum(at::kDouble).item<double>() / double((document.next_N >= 0).sum().item<int64_t>());
}

double mass_on(const at::Tensor& attention_MS, const at::Tensor& selected_MK) {
  auto index = selected_MK.clamp_min(0).to(at::kLong);
  return (attention_MS.gather(1, index) * (selected_MK >= 0)).sum(1).mean().item<float>();
}

// Some of the rows that have more than k keys, ascending.
at::Tensor rows_beyond(int64_t k, int64_t N) {
  RandomStream random(1, cat("kept.rows.", k));
  std::vector<int64_t> rows;
  for (int64_t row = k; row < N; ++row) rows.push_back(row);
  shuffle(rows, random);
  rows.resize(std::min<size_t>(rows.size(), kRows));
  std::sort(rows.begin(), rows.end());
  return at::tensor(rows, at::kLong);
}

}  // namespace

std::vector<HeldOut> held_out_documents(const TokenShards& shards, const std::string& kind, int64_t tokens, int64_t count) {
  std::vector<HeldOut> out;
  for (int64_t d = 0; d < shards.documents() && int64_t(out.size()) < count; ++d) {
    if (shards.length(d) < tokens) continue;
    std::vector<int32_t> text(tokens + 1, -1);
    shards.read(d, 0, std::min(tokens + 1, shards.length(d)), text.data());
    auto all = at::tensor(text, at::kInt);
    out.push_back({kind, pack_documents(all.narrow(0, 0, tokens), {tokens}), all.narrow(0, 1, tokens).contiguous()});
  }
  return out;
}

double document_nll(const Transformer& model, const HeldOut& document, KeptForm form, int64_t k) {
  auto config = model.config();
  config.index_topk = k;
  Transformer with_k(config, model.weights());
  ForwardOptions options{.attention = form == KeptForm::dense ? Attention::dense : Attention::sparse,
                         .best_keys = form == KeptForm::best};
  Replay window;
  if (form == KeptForm::window) {
    window.selected_NK.assign(config.num_hidden_layers, window_selection(document.batch, k, kSinks));
    options.replay = &window;
  }
  return nll_of(form == KeptForm::dense ? model : with_k, document, options);
}

Attended measure_attention(const Transformer& model, const HeldOut& document, int64_t k) {
  c10::AutoGradMode no_grad(false);
  auto some = rows_beyond(k, document.batch.tokens_N.size(0));
  Attended out;
  std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t layer, const DenseAttention& seen) {
    out.mass +=
        mass_on(model.mean_attention(seen, document.batch, some), model.indexer_choice(layer, seen, document.batch, some, k));
  };
  out.nll = nll_of(model, document, {.attention = Attention::dense, .watch = &watch});
  out.mass /= double(model.config().num_hidden_layers);
  return out;
}

Json measure_kept(const Transformer& taught, const Transformer& fresh, const HeldOut& document, const std::vector<int64_t>& keys,
                  bool baselines) {
  c10::AutoGradMode no_grad(false);
  const auto& batch = document.batch;
  int64_t N = batch.tokens_N.size(0);
  double layers = double(taught.config().num_hidden_layers);
  Json out = {{"kind", document.kind}, {"tokens", N}, {"keys", Json::array()}};
  for (int64_t k : keys) {
    FULGUR_CHECK(k > 0 && k < N, "[adapt] expected fewer keys than a document's ", N, " tokens, got ", k);
    out["keys"].push_back({{"k", k}, {"mass", {{"fresh", 0.0}, {"taught", 0.0}, {"best", 0.0}, {"window", 0.0}}}});
  }
  std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t layer, const DenseAttention& seen) {
    for (auto& of : out["keys"]) {
      int64_t k = of["k"];
      auto some = rows_beyond(k, N);
      auto attention = taught.mean_attention(seen, batch, some);
      auto add = [&](const char* form, const at::Tensor& chosen) {
        of["mass"][form] = of["mass"][form].get<double>() + mass_on(attention, chosen) / layers;
      };
      add("fresh", fresh.indexer_choice(layer, seen, batch, some, k));
      add("taught", taught.indexer_choice(layer, seen, batch, some, k));
      add("best", ops::top_k(attention, batch.visible_N2.select(1, 1).index_select(0, some), k));
      add("window", window_selection(batch, k, kSinks).index_select(0, some));
    }
  };
  out["dense"] = nll_of(taught, document, {.attention = Attention::dense, .watch = &watch});
  for (auto& of : out["keys"])
    for (auto [name, form] : {std::pair("taught", KeptForm::taught), {"best", KeptForm::best}, {"window", KeptForm::window}})
      if (baselines || form == KeptForm::taught) of["nll"][name] = document_nll(taught, document, form, of["k"]);
  return out;
}

}  // namespace fulgur
