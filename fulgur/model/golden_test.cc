// The whole model against other people's software: tests/golden/model/README.md says who, and the tolerances.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

constexpr double kForward = 2e-5, kGradient = 1e-4;  // max |a - b| / max |b|
const std::string kGolden = FULGUR_GOLDEN "/model/";

double relative(const at::Tensor& got, const at::Tensor& expected) {
  EXPECT_EQ(got.sizes(), expected.sizes());
  auto e = expected.to(at::kDouble);
  double largest = e.abs().max().item<double>();
  double difference = (got.detach().to(at::kDouble) - e).abs().max().item<double>();
  return largest == 0 ? difference : difference / largest;
}

// One golden set, its model, and the batch of its tokens.
struct Golden {
  explicit Golden(const std::string& set)
      : name(set), config(read_config(kGolden + set + "/config.json")),
        model(config, import_weights(config, read_weights(kGolden + "weights/model.safetensors"), /*share_mtp=*/false)),
        inputs(read_safetensors(kGolden + set + "/inputs.safetensors")) {
    auto tokens = inputs.at("tokens");
    B = tokens.size(0), T = tokens.size(1);
    batch = pack_documents(tokens.flatten(), std::vector<int64_t>(B, T));
  }
  Tensors expected(const std::string& suffix = "") { return read_safetensors(kGolden + name + suffix + "/expected.safetensors"); }
  at::Tensor rows(const at::Tensor& x, int64_t keep) {  // [B*T, ...] -> [B, keep, ...]
    return x.unflatten(0, {B, T}).narrow(1, 0, keep);
  }
  // Selected keys count from their sequence's first.
  at::Tensor relative_keys(const at::Tensor& selected_NK) {
    auto begin = batch.visible_N2.select(1, 0).unsqueeze(1);
    return at::where(selected_NK >= 0, selected_NK - begin, selected_NK);
  }

  std::string name;
  ModelConfig config;
  Transformer model;
  Tensors inputs;
  Batch batch;
  int64_t B, T;
};

class GoldenModel : public testing::TestWithParam<std::tuple<std::string, Attention>> {};

TEST_P(GoldenModel, LogitsHiddenStatesScoresSelectionsAndRoutesAreThoseOfOthers) {
  auto [set, attention] = GetParam();
  Golden g(set);
  auto expected = g.expected();
  Trace trace;
  ForwardOptions options{.attention = attention, .trace = &trace, .trace_scores = true};
  c10::AutoGradMode no_grad(false);
  auto hidden = g.model.forward(g.batch, options);
  auto mtp = g.model.forward_mtp(g.batch, hidden, options);
  const Weights& w = g.model.weights();
  EXPECT_LT(relative(g.rows(ops::logits(hidden, w.lm_head), g.T), expected.at("logits")), kForward);
  EXPECT_LT(relative(g.rows(ops::logits(mtp, w.mtp->head), g.T - 1), expected.at("mtp.logits")), kForward);
  for (int64_t i = 0; i < int64_t(trace.size()); ++i) {
    int64_t keep = i < g.config.num_hidden_layers ? g.T : g.T - 1;
    auto layer = cat("layer.", i, ".");
    const LayerTrace& t = trace[i];
    EXPECT_LT(relative(g.rows(t.hidden_ND, keep), expected.at(layer + "hidden")), kForward) << layer;
    EXPECT_LT(relative(g.rows(t.attn_out_ND, keep), expected.at(layer + "attn_out")), kForward) << layer;
    if (expected.contains(layer + "selected"))
      EXPECT_TRUE(at::equal(g.rows(g.relative_keys(t.selected_NK), keep), expected.at(layer + "selected"))) << layer;
    auto own = at::stack([&] {
      std::vector<at::Tensor> blocks;
      for (int64_t b = 0; b < g.B; ++b) blocks.push_back(t.indexer_scores_NS.narrow(0, b * g.T, keep).narrow(1, b * g.T, g.T));
      return blocks;
    }());
    own = own.masked_fill(own == -INFINITY, 0).narrow(2, 0, expected.at(layer + "indexer_scores").size(2));
    if (expected.contains("score_rows")) {
      auto rows = expected.at("score_rows").to(at::kLong);
      own = own.index_select(1, rows.masked_select(rows < keep));
    }
    EXPECT_LT(relative(own, expected.at(layer + "indexer_scores")), kForward) << layer;
    if (!t.experts_Nk.defined()) continue;
    EXPECT_TRUE(at::equal(g.rows(t.experts_Nk, keep), expected.at(layer + "experts"))) << layer;
    EXPECT_LT(relative(g.rows(t.expert_weights_Nk, keep), expected.at(layer + "expert_weights")), kForward) << layer;
  }
}
// Dense attention is the truth only where every key is kept.
INSTANTIATE_TEST_SUITE_P(Sets, GoldenModel,
                         testing::Values(std::tuple("dsa-small", Attention::sparse),
                                         std::tuple("dsa-yarn", Attention::sparse),
                                         std::tuple("dense", Attention::sparse),
                                         std::tuple("dense", Attention::dense)));

// Tokens `ahead` positions later, -1 where there is none.
at::Tensor targets(const Golden& g, int64_t ahead) {
  auto tokens = g.inputs.at("tokens");
  auto out = at::full_like(tokens, -1);
  out.narrow(1, 0, g.T - ahead).copy_(tokens.narrow(1, ahead, g.T - ahead));
  return out.flatten();
}

TEST(GoldenGradients, LossesAndEveryGradientAreThoseOfOthers) {
  for (std::string set : {"dsa-small", "dsa-yarn", "dense"}) {
    Golden g(set);
    auto expected = g.expected(), gradients = g.expected("-grad");
    auto params = parameters(g.model.weights());
    for (auto& p : params) p.tensor->requires_grad_(p.trained() && !p.indexer());
    ForwardOptions options;
    auto hidden = g.model.forward(g.batch, options);
    auto loss = -ops::log_prob(hidden, g.model.weights().lm_head, targets(g, 1)).sum() / double(g.B * (g.T - 1));
    auto mtp_hidden = g.model.forward_mtp(g.batch, hidden.detach(), options);
    auto mtp_loss = -ops::log_prob(mtp_hidden, g.model.weights().mtp->head, targets(g, 2)).sum() / double(g.B * (g.T - 2));
    EXPECT_LT(relative(loss.view({1}), expected.at("loss")), kForward) << set;
    EXPECT_LT(relative(mtp_loss.view({1}), expected.at("mtp_loss")), kForward) << set;
    auto collect = [&](const at::Tensor& of, const std::string& prefix) {
      for (auto& p : params) p.tensor->mutable_grad() = at::Tensor();
      of.backward();
      Weights copy = g.model.weights();  // shares structure; tensors replaced by their gradients
      for (auto& p : parameters(copy)) *p.tensor = p.tensor->grad().defined() ? p.tensor->grad() : at::zeros_like(*p.tensor).detach();
      auto got = export_weights(g.config, copy);
      int64_t compared = 0;
      for (const auto& [name, tensor] : gradients) {
        if (name.rfind(prefix + ".", 0) != 0) continue;
        auto parameter = name.substr(prefix.size() + 1);
        ASSERT_TRUE(got.contains(parameter)) << name;
        EXPECT_LT(relative(got.at(parameter), tensor), kGradient) << set << " " << name;
        ++compared;
      }
      EXPECT_GT(compared, 20);
    };
    collect(loss, "grad");
    collect(mtp_loss, "grad_mtp");
  }
}

TEST(GoldenKl, IndexerLossesAndTheirGradientsAreThoseOfOthers) {
  for (std::string set : {"dsa-small", "dsa-yarn", "dense"})
    for (auto attention : {Attention::dense, Attention::sparse}) {
      Golden g(set);
      auto expected = g.expected("-kl");
      std::string kind = attention == Attention::dense ? "kl_dense" : "kl_sparse";
      auto params = parameters(g.model.weights());
      for (auto& p : params) p.tensor->requires_grad_(p.indexer());
      std::vector<LayerLosses> losses;
      ForwardOptions options{.attention = attention, .indexer_kl = true};
      auto hidden = g.model.forward(g.batch, options, nullptr, &losses);
      if (attention == Attention::sparse) g.model.forward_mtp(g.batch, hidden, options, &losses);
      std::vector<at::Tensor> rows;
      at::Tensor total;
      for (size_t i = 0; i < losses.size(); ++i) {
        auto kl = losses[i].kl_N.view({g.B, g.T});
        if (i == size_t(g.config.num_hidden_layers)) {  // the MTP layer has no last row
          auto keep = at::ones_like(kl).detach();
          keep.select(1, g.T - 1).zero_();
          kl = kl * keep;
        }
        rows.push_back(kl);
        total = total.defined() ? total + kl.sum() : kl.sum();
      }
      auto got_rows = at::stack(rows);
      EXPECT_LT(relative(got_rows, expected.at(kind + ".rows")), kForward) << set << kind;
      EXPECT_LT(relative(got_rows.sum({1, 2}), expected.at(kind + ".layer")), kForward) << set << kind;
      total.backward();
      Weights copy = g.model.weights();
      for (auto& p : parameters(copy)) *p.tensor = p.tensor->grad().defined() ? p.tensor->grad() : at::zeros_like(*p.tensor).detach();
      auto got = export_weights(g.config, copy);
      int64_t compared = 0;
      for (const auto& [name, tensor] : expected) {
        std::string prefix = "grad_" + kind + ".";
        if (name.rfind(prefix, 0) != 0) continue;
        EXPECT_LT(relative(got.at(name.substr(prefix.size())), tensor), kGradient) << set << " " << name;
        ++compared;
      }
      EXPECT_GT(compared, 10);
    }
}

TEST(GoldenGreedy, DecodingThroughTheCacheGivesTheTokensOfOthers) {
  for (std::string set : {"greedy", "greedy-yarn"}) {
    auto config = read_config(kGolden + set + "/config.json");
    Transformer model(config, import_weights(config, read_weights(kGolden + "weights/model.safetensors"), false));
    auto expected = read_safetensors(kGolden + set + "/expected.safetensors");
    auto prompt = read_safetensors(kGolden + set + "/inputs.safetensors").at("prompt").flatten();
    std::vector<int32_t> next(prompt.const_data_ptr<int>(), prompt.const_data_ptr<int>() + prompt.numel());
    auto generated = expected.at("generated").flatten();
    c10::AutoGradMode no_grad(false);
    Cache cache(config, Attention::sparse, at::kFloat, 1, prompt.numel() + generated.numel());
    for (int64_t step = 0; step < generated.numel(); ++step) {
      Trace trace;
      auto hidden = model.forward(cache.append({0}, {next}), {.trace = &trace}, &cache);
      auto logits = ops::logits(hidden.narrow(0, hidden.size(0) - 1, 1), model.weights().lm_head).squeeze(0);
      EXPECT_LT(relative(logits, expected.at("step_logits")[step]), kForward) << set << step;
      next = {int32_t(logits.argmax().item<int64_t>())};
      ASSERT_EQ(next[0], generated[step].item<int>()) << set << step;
      if (step + 1 < generated.numel()) continue;
      for (int64_t i = 0; i < config.num_hidden_layers; ++i)
        EXPECT_TRUE(at::equal(trace[i].selected_NK[-1], expected.at("last_step_selected")[i])) << set << i;
    }
  }
}

}  // namespace
}  // namespace fulgur
