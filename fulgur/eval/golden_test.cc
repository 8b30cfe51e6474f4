// The whole model against other people's software: tests/golden/model/README.md says who, and the tolerances.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/eval/dump.h"

namespace fulgur {
namespace {

constexpr double kForward = 2e-5, kGradient = 1e-4;  // max |a - b| / max |b|
const std::string kGolden = FULGUR_GOLDEN "/model/";

Transformer golden_model(const std::string& set) {
  auto config = read_config(kGolden + set + "/config.json");
  return Transformer(config, import_weights(config, read_weights(kGolden + "weights/model.safetensors"), /*share_mtp=*/false));
}
at::Tensor golden_tokens(const std::string& set) { return read_safetensors(kGolden + set + "/inputs.safetensors").at("tokens"); }
Tensors golden_values(const std::string& set) { return read_safetensors(kGolden + set + "/expected.safetensors"); }

// Every expected tensor of a name `wanted` accepts: there, whole numbers equal, the rest within the tolerance.
int compare(
    const Tensors& got, const Tensors& expected, const std::string& what,
    const std::function<bool(const std::string&)>& wanted = [](const std::string&) { return true; }) {
  int compared = 0;
  for (const auto& [name, e] : expected) {
    if (!wanted(name) || name == "score_rows" || name.find("mtp.hidden_") == 0) continue;  // not values of the default
    if (!got.contains(name)) {
      ADD_FAILURE() << what << ": no " << name;
      continue;
    }
    auto g = got.at(name);
    if (name.find("indexer_scores") != std::string::npos && expected.contains("score_rows")) {
      auto rows = expected.at("score_rows").to(at::kLong);
      g = g.index_select(1, rows.masked_select(rows < g.size(1)));
    }
    if (name.find("indexer_scores") != std::string::npos) g = g.narrow(2, 0, e.size(2));
    EXPECT_EQ(g.sizes(), e.sizes()) << what << " " << name;
    if (g.sizes() != e.sizes()) continue;
    ++compared;
    if (!e.is_floating_point()) {
      EXPECT_TRUE(at::equal(g, e)) << what << " " << name;
      continue;
    }
    double largest = e.abs().max().item<double>(),
           difference = (g.to(at::kDouble) - e.to(at::kDouble)).abs().max().item<double>();
    double tolerance = name.find("grad") == 0 ? kGradient : kForward;
    EXPECT_LE(difference, tolerance * largest) << what << " " << name;
  }
  return compared;
}

class GoldenModel : public testing::TestWithParam<std::tuple<std::string, Attention>> {};

TEST_P(GoldenModel, LogitsHiddenStatesScoresSelectionsAndRoutesAreThoseOfOthers) {
  auto [set, attention] = GetParam();
  auto got = dump_forward(golden_model(set), golden_tokens(set), {.attention = attention});
  EXPECT_GT(compare(got, golden_values(set), set), 20);
}
// Dense attention is the truth only where every key is kept.
INSTANTIATE_TEST_SUITE_P(Sets, GoldenModel,
                         testing::Values(std::tuple("dsa-small", Attention::sparse), std::tuple("dsa-yarn", Attention::sparse),
                                         std::tuple("dense", Attention::sparse), std::tuple("dense", Attention::dense)));

TEST(GoldenGradients, LossesAndEveryGradientAreThoseOfOthers) {
  for (std::string set : {"dsa-small", "dsa-yarn", "dense"}) {
    auto model = golden_model(set);
    EXPECT_GT(compare(dump_grad(model, golden_tokens(set), {}), golden_values(set + "-grad"), set), 100);
  }
}

TEST(GoldenKl, IndexerLossesAndTheirGradientsAreThoseOfOthers) {
  for (std::string set : {"dsa-small", "dsa-yarn", "dense"}) {
    auto model = golden_model(set);
    EXPECT_GT(compare(dump_kl(model, golden_tokens(set), {}), golden_values(set + "-kl"), set), 30);
  }
}

TEST(GoldenGreedy, DecodingThroughTheCacheGivesTheTokensOfOthers) {
  for (std::string set : {"greedy", "greedy-yarn"}) {
    auto prompt = read_safetensors(kGolden + set + "/inputs.safetensors").at("prompt");
    auto expected = golden_values(set);
    auto got = dump_greedy(golden_model(set), prompt, expected.at("generated").numel(), {});
    got["generated"] = got["generated"].view_as(expected.at("generated"));
    EXPECT_EQ(compare(got, expected, set), 3);
  }
}

// Routes and selections forced, so that bf16's rounding cannot flip a choice.
TEST(GoldenBf16, LogitsStayWithinThreePercentOfTheLargest) {
  for (std::string set : {"dsa-small", "dsa-yarn", "dense"}) {
    auto expected = golden_values(set);
    auto got = dump_forward(golden_model(set), golden_tokens(set), {.type = at::kBFloat16, .replay = &expected});
    // The MTP layer rounds once more on top of the model. On dsa-yarn its largest error of 76,544 is .037 to .043 by instruction
    // set; the root of the mean square is .017 by all.
    struct Bar {
      const char* name;
      double largest, rms;
    };
    for (auto [name, largest, rms] : {Bar{"logits", 3e-2, 1.4e-2}, Bar{"mtp.logits", 5e-2, 1.9e-2}}) {
      auto e = expected.at(name), off = got.at(name) - e;
      EXPECT_LE(off.abs().max().item<double>(), largest * e.abs().max().item<double>()) << set << " " << name;
      EXPECT_LE(off.norm().item<double>(), rms * e.norm().item<double>()) << set << " " << name;
    }
  }
}

}  // namespace
}  // namespace fulgur
