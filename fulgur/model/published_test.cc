#include "fulgur/model/published.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/model/names.h"
#include "fulgur/model/weights.h"

namespace fulgur {
namespace {

// Sizes with every edge of the published ones: heads of 192 and 256 rows, 4.5 blocks of latents and rope keys.
ModelConfig edges() {
  ModelConfig c;
  c.vocab_size = 100, c.hidden_size = 200, c.intermediate_size = 300, c.moe_intermediate_size = 130;
  c.num_hidden_layers = 2, c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 1, c.num_attention_heads = 2;
  c.q_lora_rank = 140, c.kv_lora_rank = 512, c.qk_nope_head_dim = 128, c.qk_rope_head_dim = 64, c.v_head_dim = 128;
  c.n_routed_experts = 4, c.n_shared_experts = 1, c.num_experts_per_tok = 2, c.n_group = 2, c.topk_group = 1;
  c.index_n_heads = 2, c.index_head_dim = 128, c.index_topk = 16, c.max_position_embeddings = 64;
  validate(c, "edges");
  return c;
}

TEST(Published, Fp8IsThePublishedLayoutAndComesBackWithItsValues) {
  auto config = edges();
  Weights weights = init_weights(config, 1);
  auto masters = export_weights(config, weights);
  auto stored = published(masters, Precision::fp8);
  auto sizes = [&](const std::string& name) { return stored.at(name).sizes().vec(); };
  const std::string layer = "model.layers.1.";
  EXPECT_EQ(sizes(layer + "self_attn.kv_a_proj_with_mqa.weight_scale_inv"), (std::vector<int64_t>{5, 2}));
  EXPECT_EQ(sizes(layer + "self_attn.indexer.wk.weight_scale_inv"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(sizes(layer + "mlp.experts.3.down_proj.weight_scale_inv"), (std::vector<int64_t>{2, 2}));
  EXPECT_EQ(stored.at(layer + "self_attn.q_b_proj.weight").scalar_type(), at::kFloat8_e4m3fn);
  for (auto plain : {"model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight",
                     "model.layers.1.self_attn.indexer.weights_proj.weight", "model.layers.2.eh_proj.weight",
                     "model.layers.1.self_attn.kv_a_layernorm.weight"}) {
    EXPECT_EQ(stored.at(plain).scalar_type(), at::kBFloat16) << plain;
    EXPECT_FALSE(stored.contains(plain + std::string("_scale_inv"))) << plain;
  }
  EXPECT_EQ(stored.at(layer + "mlp.gate.e_score_correction_bias").scalar_type(), at::kFloat);

  auto read = unpublished(stored);
  check_weights(config, read);
  for (const auto& [name, tensor] : masters) {
    auto back = read.at(name).to(at::kFloat);
    double most = tensor.abs().max().item<double>();
    EXPECT_LE((back - tensor).abs().max().item<double>(), most / 14) << name;
  }
  // A block whose largest value was rounded down may take a smaller scale then, and holds the same values.
  for (const auto& [name, tensor] : unpublished(published(read, Precision::fp8)))
    EXPECT_TRUE(at::equal(tensor, read.at(name))) << name << ": what was FP8 once keeps its values";
}

TEST(Published, ScalesThatDoNotFitAreRefused) {
  auto config = edges();
  Weights weights = init_weights(config, 1);
  auto stored = published(export_weights(config, weights), Precision::fp8);
  const std::string name = "model.layers.0.self_attn.o_proj.weight";
  auto without = stored, wide = stored, alone = stored;
  without.erase(name + "_scale_inv");
  wide[name + "_scale_inv"] = at::ones({1, 2});
  alone.erase(name);
  for (const auto& bad : {without, wide, alone}) EXPECT_THROW(unpublished(bad), InputError);
}

}  // namespace
}  // namespace fulgur
