#include "fulgur/model/config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/model/cost.h"
#include "fulgur/model/names.h"

namespace fulgur {
namespace {

const std::string kGolden = FULGUR_GOLDEN "/model/dsa-small/config.json";

std::string complaint(const Json& json) {
  try {
    parse_config(json, "config.json");
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

// The published sizes (spec A.1).
ModelConfig official() {
  ModelConfig c;
  c.vocab_size = 129280, c.hidden_size = 7168, c.intermediate_size = 18432, c.moe_intermediate_size = 2048;
  c.num_hidden_layers = 61, c.first_k_dense_replace = 3, c.num_nextn_predict_layers = 1, c.num_attention_heads = 128;
  c.q_lora_rank = 1536, c.kv_lora_rank = 512, c.qk_nope_head_dim = 128, c.qk_rope_head_dim = 64, c.v_head_dim = 128;
  c.n_routed_experts = 256, c.n_shared_experts = 1, c.num_experts_per_tok = 8, c.n_group = 8, c.topk_group = 4;
  c.index_n_heads = 64, c.index_head_dim = 128, c.index_topk = 2048;
  return c;
}

TEST(Config, WhatIsReadIsWrittenAgain) {
  auto json = config_json(read_config(kGolden));
  EXPECT_EQ(config_json(parse_config(json, "again")).dump(), json.dump());
}

TEST(Config, ImpossibleSizesAreNamedInOneLine) {
  const Json good = config_json(read_config(kGolden));
  ASSERT_EQ(complaint(good), "");
  for (auto [key, value, says] : std::vector<std::tuple<std::string, Json, std::string>>{
           {"qk_rope_head_dim", 15, "expected an even size"},
           {"n_group", 3, "expected groups that divide 8 experts, got 3"},
           {"num_experts_per_tok", 9, "num_experts_per_tok: expected at most"},
           {"topk_group", 5, "topk_group: expected at most n_group 4"},
           {"hidden_size", 0, "hidden_size: expected a size from 1"},
           {"hidden_size", -64, "got -64"},
           {"hidden_size", "64", "hidden_size: expected an integer, got \"64\""},
           {"hidden_size", nullptr, "expected the key hidden_size, got none"},
           {"num_hidden_layers", 1000000, "expected 1 to 10000 layers"},
           {"first_k_dense_replace", 9, "first_k_dense_replace"},
           {"index_head_dim", 8, "index_head_dim: expected at least qk_rope_head_dim"},
           {"index_topk", 0, "index_topk"},
           {"scoring_func", "softmax", "scoring_func: expected \"sigmoid\", got \"softmax\""},
           {"model_type", "gpt2", "model_type: expected deepseek_v32, deepseek_v3 or llama"},
           {"rope_scaling", Json{{"type", "linear"}}, "rope_scaling.type: expected yarn"}}) {
    Json bad = good;
    bad[key] = value;
    auto said = complaint(bad);
    EXPECT_NE(said.find(says), std::string::npos) << key << "\n" << said;
    EXPECT_EQ(said.rfind("[config] config.json", 0), 0u) << said;
  }
  EXPECT_NE(complaint(Json::array()).find("expected a JSON object"), std::string::npos);
}

// Any value under any key: a config or one InputError.
TEST(Config, MutatedValuesNeverDoWorseThanAnError) {
  const Json good = config_json(read_config(kGolden));
  RandomStream random(1, "config");
  const Json values[] = {0, 1, -1, 3, int64_t(1) << 62, 1e300, 0.5, true, nullptr, "x", Json::array(), Json::object()};
  int read = 0, refused = 0;
  for (int round = 0; round < 3000; ++round) {
    Json bad = good;
    auto at = bad.begin();
    std::advance(at, random.below(bad.size()));
    at.value() = values[random.below(std::size(values))];
    try {
      parse_config(bad, "x"), ++read;
    } catch (const InputError&) {
      ++refused;
    }
  }
  EXPECT_GT(read, 100);
  EXPECT_GT(refused, 1000);
}

TEST(Names, ShapesOfTheOfficialModelAddUpToThePublishedCounts) {
  int64_t main = 0, mtp = 0, indexers = 0;
  for (const auto& spec : tensor_specs(official())) {
    int64_t size = 1;
    for (int64_t s : spec.shape) size *= s;
    (spec.name.rfind("model.layers.61.", 0) == 0 ? mtp : main) += size;
    if (spec.name.find(".indexer.") != std::string::npos && spec.name.rfind("model.layers.61.", 0) != 0) indexers += size;
  }
  auto count = count_parameters(official());
  EXPECT_EQ(main, count.total);
  EXPECT_EQ(mtp, count.mtp);
  EXPECT_EQ(indexers, count.indexers);
  EXPECT_NEAR(double(main) / 1e9, 671.878, 0.001);  // spec A.7
  EXPECT_NEAR(double(indexers) / 1e9, 0.852, 0.001);
  EXPECT_NEAR(double(mtp) / 1e9, 13.477, 0.001);
  EXPECT_NEAR(double(count.active) / 1e9, 38.40, 0.005);
}

// Spec C: per token and layer at 128K the indexer needs 2.15 GFLOP, sparse MLA 0.57; together 7.4 % of dense absorbed.
TEST(Cost, AttentionOfTheOfficialModelCostsWhatThePaperSays) {
  auto c = official();
  double layers = 61, position = 131072;
  auto sparse = token_cost(c, Form::sparse, int64_t(position), 1),
       absorbed = token_cost(c, Form::dense_absorbed, int64_t(position), 1);
  double projections = 2.0 * double(count_parameters(c).indexers);
  double pairs = (sparse.indexer_flops - projections) / layers;
  EXPECT_NEAR(pairs / 1e9, 2.15, 0.01);
  EXPECT_NEAR(sparse.attention_flops / layers / 1e9, 0.57, 0.01);
  EXPECT_NEAR((pairs + sparse.attention_flops / layers) / (absorbed.attention_flops / layers), 0.074, 0.001);
  EXPECT_EQ(token_cost(c, Form::dense_absorbed, 1, 2).cache_bytes_per_token, 61 * 576 * 2);
}

// Beyond k keys only the indexer's share grows.
TEST(Cost, SparseAttentionStopsGrowingAtK) {
  auto c = official();
  EXPECT_EQ(token_cost(c, Form::sparse, 4096, 1).attention_flops, token_cost(c, Form::sparse, 131072, 1).attention_flops);
  EXPECT_LT(token_cost(c, Form::sparse, 1024, 1).attention_flops, token_cost(c, Form::sparse, 2048, 1).attention_flops);
}

TEST(Cost, AStepOfOneRowIsATokenAndOfMoreReadsItsWeightsOnce) {
  auto c = official();
  for (auto form : {Form::sparse, Form::dense, Form::dense_absorbed}) {
    auto token = token_cost(c, form, 5000, 2);
    auto bytes = stored_bytes(c, form, 2);
    auto one = step_cost(c, form, 4999, 1, bytes), two = step_cost(c, form, 4998, 2, bytes),
         many = step_cost(c, form, 0, 100000, bytes);
    EXPECT_NEAR(one.flops / token.flops, 1, 1e-12);
    EXPECT_NEAR(one.bytes / (token.weight_bytes + token.cache_bytes), 1, 1e-12);
    EXPECT_NEAR(one.core_flops - one.indexer_flops, token.attention_flops, 1);
    EXPECT_NEAR(one.core_bytes, token.cache_bytes, 1);
    EXPECT_LT(two.flops, 2 * one.flops);  // one head
    EXPECT_LT(two.bytes, 2 * one.bytes);
    EXPECT_LT(many.bytes, 2.0 * double(count_parameters(c).total) + 100000 * token.cache_bytes_per_token);
  }
}

}  // namespace
}  // namespace fulgur
