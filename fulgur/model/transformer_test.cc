// Bit for bit: a token's result is a function of its own sequence alone.
#include "fulgur/model/transformer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

// Sizes that are no multiple of 8, five heads, YaRN.
ModelConfig odd_config() {
  ModelConfig c;
  c.vocab_size = 211, c.hidden_size = 44, c.intermediate_size = 70, c.moe_intermediate_size = 18;
  c.num_hidden_layers = 3, c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 1, c.num_attention_heads = 5;
  c.q_lora_rank = 28, c.kv_lora_rank = 20, c.qk_nope_head_dim = 12, c.qk_rope_head_dim = 6, c.v_head_dim = 10;
  c.n_routed_experts = 6, c.n_shared_experts = 1, c.num_experts_per_tok = 2, c.n_group = 3, c.topk_group = 2;
  c.index_n_heads = 3, c.index_head_dim = 14, c.index_topk = 9, c.max_position_embeddings = 64;
  c.rope_scaling = RopeScaling{.factor = 4, .original_max_position_embeddings = 16};
  c.initializer_range = 0.2;
  validate(c, "odd");
  return c;
}

// Grouped-query attention: six heads share two of keys; the head is the embedding.
ModelConfig odd_llama() {
  ModelConfig c;
  c.model_type = "llama", c.tie_word_embeddings = true;
  c.vocab_size = 211, c.hidden_size = 44, c.intermediate_size = 70, c.num_hidden_layers = c.first_k_dense_replace = 3;
  c.num_attention_heads = 6, c.num_key_value_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 10;
  c.max_position_embeddings = 64, c.initializer_range = 0.2;
  validate(c, "llama");
  return c;
}

// With an indexer, over keys of its own or the attention's.
ModelConfig odd_sparse_llama(const std::string& index_keys) {
  ModelConfig c = odd_llama();
  c.index_keys = index_keys, c.index_topk = 9, c.index_n_heads = 4, c.index_head_dim = index_keys == "own" ? 14 : 10;
  validate(c, "sparse llama");
  return c;
}

std::vector<int32_t> sequence(int64_t index, int64_t length) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < length; ++i) tokens.push_back(int32_t((i * 37 + index * 101 + i * i % 13) % 211));
  return tokens;
}

// An indexer on the latents themselves.
ModelConfig odd_tied_latents() {
  auto c = odd_config();
  c.index_keys = "tied", c.index_head_dim = c.tied_key_size();
  validate(c, "odd");
  return c;
}

struct Case {
  Attention attention;
  at::ScalarType type;
  std::string model = "";  // of llama its index keys, "none" without an indexer; "latents": odd_tied_latents; empty: V3.2
};

ModelConfig config_of(const Case& c) {
  if (c.model == "latents") return odd_tied_latents();
  return c.model.empty() ? odd_config() : c.model == "none" ? odd_llama() : odd_sparse_llama(c.model);
}

class SameBits : public testing::TestWithParam<Case> {
 protected:
  at::Tensor logits(const at::Tensor& hidden) { return ops::logits(hidden, model.weights().lm_head); }

  // Sequence 0 within a batch of `count`.
  at::Tensor in_batch(int64_t count) {
    std::vector<int32_t> all;
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < count; ++i) {
      auto tokens = sequence(i, i == 0 ? kLength : 5 + i % 30);
      all.insert(all.end(), tokens.begin(), tokens.end());
      lengths.push_back(int64_t(tokens.size()));
    }
    auto batch = pack_documents(at::tensor(all, at::kInt), lengths);
    return logits(model.forward(batch, {.attention = GetParam().attention, .type = GetParam().type}).narrow(0, 0, kLength));
  }

  // Sequence 0 through the cache in chunks, another sequence growing beside it; their pages lie in no order.
  at::Tensor in_chunks(int64_t chunk) {
    Cache cache(model.config(), GetParam().attention, GetParam().type, 7);
    CachedSequence first{{5, 1}}, second{{4, 6}};
    auto own = sequence(0, kLength), other = sequence(1, kLength);
    std::vector<at::Tensor> parts;
    for (int64_t at = 0; at < kLength; at += chunk) {
      int64_t count = std::min(chunk, kLength - at);
      auto part = [&](const std::vector<int32_t>& s) { return std::vector<int32_t>(s.begin() + at, s.begin() + at + count); };
      auto hidden = model.forward(append({&second, &first}, {part(other), part(own)}),
                                  {.attention = GetParam().attention, .type = GetParam().type}, &cache);
      parts.push_back(logits(hidden.narrow(0, count, count)));
    }
    return at::cat(parts);
  }

  static constexpr int64_t kLength = 83;
  c10::AutoGradMode no_grad{false};
  ModelConfig config = config_of(GetParam());
  Transformer model{config, init_weights(config, 7)};
};

TEST_P(SameBits, InABatchOf1And7And64) {
  auto alone = in_batch(1);
  EXPECT_TRUE(alone.isfinite().all().item<bool>());
  EXPECT_GT(alone.abs().max().item<float>(), 0.01);
  for (int64_t count : {7, 64}) EXPECT_TRUE(at::equal(in_batch(count), alone)) << count;
}

TEST_P(SameBits, InOneChunkInChunksOfSevenTokenByToken) {
  auto whole = in_batch(1);
  for (int64_t chunk : {kLength, int64_t(7), int64_t(1)}) EXPECT_TRUE(at::equal(in_chunks(chunk), whole)) << chunk;
}

// The MTP layer's keys lie in the cache's last layer; each row is told the token behind it, which its chunk may not hold.
TEST_P(SameBits, TheMtpLayerInChunks) {
  if (!model.weights().mtp) GTEST_SKIP() << "Llama has no MTP layer";
  ForwardOptions options{.attention = GetParam().attention, .type = GetParam().type};
  auto tokens = sequence(0, kLength);
  auto document = pack_documents(at::tensor(tokens, at::kInt), {kLength});
  auto whole = model.forward_mtp(document, model.forward(document, options), options).narrow(0, 0, kLength - 1);
  for (int64_t chunk : {kLength, int64_t(7), int64_t(1)}) {
    Cache cache(model.config(), GetParam().attention, GetParam().type, 7, {.mtp = true});
    CachedSequence own{{5, 1}};
    std::vector<at::Tensor> parts;
    for (int64_t at = 0; at < kLength - 1; at += chunk) {
      int64_t count = std::min(chunk, kLength - 1 - at);
      auto batch = append({&own}, {std::vector<int32_t>(tokens.begin() + at, tokens.begin() + at + count)});
      batch.next_N = document.tokens_N.narrow(0, at + 1, count);
      parts.push_back(model.forward_mtp(batch, model.forward(batch, options, &cache), options, &cache));
    }
    EXPECT_TRUE(at::equal(at::cat(parts), whole)) << chunk;
  }
}

TEST(Cache, SaysWhenASequenceIsFull) {
  auto sequence = cached_sequences(1, 64)[0];
  append({&sequence}, {std::vector<int32_t>(64, 1)});
  EXPECT_THROW(append({&sequence}, {{1}}), InputError);
}

TEST_P(SameBits, OnOneAndTwoThreads) {
  int before = threads();
  set_threads(2);
  auto two = in_batch(7);
  set_threads(1);
  EXPECT_TRUE(at::equal(in_batch(7), two));
  set_threads(before);
}

INSTANTIATE_TEST_SUITE_P(Forms, SameBits,
                         testing::Values(Case{Attention::sparse, at::kFloat}, Case{Attention::sparse, at::kBFloat16},
                                         Case{Attention::dense, at::kFloat}, Case{Attention::dense, at::kBFloat16},
                                         Case{Attention::dense, at::kFloat, "none"},
                                         Case{Attention::dense, at::kBFloat16, "none"},
                                         Case{Attention::sparse, at::kFloat, "own"}, Case{Attention::sparse, at::kFloat, "tied"},
                                         Case{Attention::sparse, at::kBFloat16, "tied"},
                                         Case{Attention::sparse, at::kFloat, "latents"},
                                         Case{Attention::sparse, at::kBFloat16, "latents"}),
                         [](const auto& info) {
                           return (info.param.model.empty() ? "" : "with_" + info.param.model + "_") +
                                  std::string(info.param.attention == Attention::sparse ? "sparse" : "dense") +
                                  (info.param.type == at::kFloat ? "_f32" : "_bf16");
                         });

// Attention that may keep every key is dense attention, in another order of sums.
TEST(Forms, SparseWithRoomForAllKeysIsDense) {
  c10::AutoGradMode no_grad(false);
  for (auto config : {odd_config(), odd_tied_latents(), odd_sparse_llama("own"), odd_sparse_llama("tied")}) {
    config.index_topk = 64;
    Transformer model(config, init_weights(config, 7));
    auto batch = pack_documents(at::tensor(sequence(0, 41), at::kInt), {41});
    auto sparse = model.forward(batch, {.attention = Attention::sparse}),
         dense = model.forward(batch, {.attention = Attention::dense});
    EXPECT_LT(((sparse - dense).abs().max() / dense.abs().max()).item<float>(), 2e-5) << config.model_type << config.index_keys;
  }
}

// The indexer's loss is its own: nothing else gets a gradient, and all of it does. Over all keys the sparse loss is the dense
// one.
TEST(Forms, AnIndexersLossTrainsTheIndexerAlone) {
  for (auto config : {odd_config(), odd_tied_latents(), odd_sparse_llama("own"), odd_sparse_llama("tied")}) {
    config.index_topk = 64;
    Transformer model(config, init_weights(config, 7));
    for (auto& parameter : parameters(model.weights())) parameter.tensor->requires_grad_(true);
    auto batch = pack_documents(at::tensor(sequence(0, 41), at::kInt), {41});
    auto loss = [&](Attention attention) {
      std::vector<LayerLosses> losses;
      model.forward(batch, {.attention = attention, .indexer_kl = true}, nullptr, &losses);
      at::Tensor sum = at::zeros({});
      for (const auto& layer : losses) sum = sum + layer.kl_N.mean();
      return sum;
    };
    auto dense = loss(Attention::dense), sparse = loss(Attention::sparse);
    EXPECT_NEAR(dense.item<float>(), sparse.item<float>(), 1e-4 * dense.item<float>());
    dense.backward();
    for (auto& parameter : parameters(model.weights())) {
      bool of_main = parameter.name.find("layers.3.") == std::string::npos;  // the MTP layer was not run
      auto grad = parameter.tensor->grad();
      bool some = grad.defined() && grad.abs().max().item<float>() > 0;
      EXPECT_EQ(some, parameter.indexer() && of_main) << config.index_keys << " " << parameter.name;
    }
  }
}

// A document's rows see nothing of the one before it.
TEST(Forms, AttentionAndPositionsRestartAtEachDocument) {
  c10::AutoGradMode no_grad(false);
  Transformer model(odd_config(), init_weights(odd_config(), 7));
  auto tokens = at::tensor(sequence(0, 40), at::kInt);
  auto packed = model.forward(pack_documents(tokens, {17, 23}), {});
  auto alone = model.forward(pack_documents(tokens.narrow(0, 17, 23), {23}), {});
  EXPECT_TRUE(at::equal(packed.narrow(0, 17, 23), alone));
}

TEST(Weights, SameSeedSameWeightsAndOfficialNamesComeBackEqual) {
  auto config = odd_config();
  Weights a = init_weights(config, 3), b = init_weights(config, 3), c = init_weights(config, 4);
  auto exported = export_weights(config, a), again = export_weights(config, b), other = export_weights(config, c);
  EXPECT_TRUE(exported.contains("model.layers.1.mlp.experts.5.down_proj.weight"));
  EXPECT_TRUE(exported.contains("model.layers.3.shared_head.head.weight"));
  for (auto& [name, tensor] : exported) EXPECT_TRUE(at::equal(tensor, again.at(name))) << name;
  EXPECT_FALSE(at::equal(exported.at("lm_head.weight"), other.at("lm_head.weight")));
  Weights back = import_weights(config, exported, /*share_mtp=*/true);
  for (auto& [name, tensor] : export_weights(config, back)) EXPECT_TRUE(at::equal(tensor, exported.at(name))) << name;
}

TEST(Weights, ATiedHeadIsTheEmbeddingAndIsNotWritten) {
  auto config = odd_llama();
  Weights weights = init_weights(config, 3);
  auto exported = export_weights(config, weights);
  EXPECT_FALSE(exported.contains("lm_head.weight"));
  EXPECT_TRUE(exported.contains("model.layers.2.self_attn.k_proj.weight"));
  Weights back = import_weights(config, exported, /*share_mtp=*/true);
  EXPECT_TRUE(back.lm_head.is_same(back.embed_tokens));
  EXPECT_TRUE(parse_config(config_json(config), "again").tie_word_embeddings);
}

}  // namespace
}  // namespace fulgur
