// Indexers beside a dense model: they change nothing of it, learn its attention, and are a function of their inputs.
#include "fulgur/train/adapt.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"

namespace fulgur {
namespace {

ModelConfig llama(const std::string& index_keys = "") {
  ModelConfig c;
  c.model_type = "llama", c.tie_word_embeddings = true;
  c.vocab_size = 50, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = c.first_k_dense_replace = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 8;
  c.max_position_embeddings = 256, c.initializer_range = 0.4;
  if (!index_keys.empty()) c.index_keys = index_keys, c.index_topk = 12, c.index_n_heads = 4, c.index_head_dim = 8;
  validate(c, "llama");
  return c;
}

// Of latents and experts, with a layer that predicts two tokens ahead.
ModelConfig deepseek(const std::string& index_keys = "") {
  ModelConfig c;
  c.model_type = index_keys.empty() ? "deepseek_v3" : "deepseek_v32";
  c.vocab_size = 50, c.hidden_size = 32, c.intermediate_size = 48, c.moe_intermediate_size = 16, c.num_hidden_layers = 2;
  c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 1, c.num_attention_heads = 4, c.q_lora_rank = 20, c.kv_lora_rank = 14;
  c.qk_nope_head_dim = 8, c.v_head_dim = 10, c.qk_rope_head_dim = 6, c.n_routed_experts = 4, c.n_shared_experts = 1;
  c.num_experts_per_tok = 2, c.max_position_embeddings = 256, c.initializer_range = 0.4;
  if (!index_keys.empty()) {
    c.index_keys = index_keys, c.index_topk = 12, c.index_n_heads = 4;
    c.index_head_dim = index_keys == "tied" ? c.tied_key_size() : 12;
  }
  validate(c, "deepseek");
  return c;
}

Transformer dense() { return {llama(), init_weights(llama(), 5)}; }

// Documents of one sequence each, numbers without end.
class Numbers : public BatchSource {
 public:
  TrainBatch get(int64_t first, int64_t count) override {
    auto tokens = (at::arange(count * 128) * (first + 7) % 47 + at::arange(count * 128) % 3).to(at::kInt);
    return {pack_documents(tokens, std::vector<int64_t>(count, 128)), tokens, tokens, (at::arange(count + 1) * 128).to(at::kInt)};
  }
  int64_t sequences_per_epoch() const override { return 1000; }
};

TEST(Adapt, IndexersLeaveTheDenseModelAsItWas) {
  c10::AutoGradMode no_grad(false);
  auto batch = Numbers().get(3, 1).batch;
  ForwardOptions options{.attention = Attention::dense};
  auto before = dense().forward(batch, options);
  for (const char* keys : {"tied", "own"})
    EXPECT_TRUE(at::equal(with_indexers(dense(), llama(keys), 1).forward(batch, options), before));
  auto of_latents = Transformer(deepseek(), init_weights(deepseek(), 5));
  auto latents_before = of_latents.forward(batch, options);
  for (const char* keys : {"tied", "own"})
    EXPECT_TRUE(at::equal(with_indexers(of_latents, deepseek(keys), 1).forward(batch, options), latents_before));
  auto config = llama("tied");
  config.index_n_heads = 6;
  EXPECT_THROW(with_indexers(dense(), config, 1), InputError);
}

// Weights of taught indexers, and the mean KL of each step.
std::pair<std::map<std::string, at::Tensor>, std::vector<double>> taught(Transformer model, IndexerTeaching teaching,
                                                                         int64_t killed_behind = 0) {
  Numbers text;
  ProcessGroup alone;
  std::vector<double> kl;
  std::map<std::string, at::Tensor> saved;
  if (killed_behind > 0) {
    auto fresh = with_indexers(model, model.config(), 1);
    IndexerTeacher teacher(fresh, teaching, alone);
    while (teacher.done() < killed_behind) kl.push_back(teacher.step(text));
    for (const auto& [name, tensor] : teacher.state()) saved[name] = tensor.clone();
  }
  IndexerTeacher teacher(model, teaching, alone);
  if (killed_behind > 0) teacher.load_state(saved, killed_behind);
  while (teacher.done() < teacher.steps()) kl.push_back(teacher.step(text));
  return {export_weights(model.config(), model.weights()), kl};
}

void expect_equal(const std::map<std::string, at::Tensor>& a, const std::map<std::string, at::Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
}

// A tied indexer begins as attention's own scores, heads apart: one head chooses what it attends to most.
TEST(Adapt, TiedIndexersOfOneHeadBeginAsTheAttentionItself) {
  c10::AutoGradMode no_grad(false);
  for (auto [before, config] : {std::pair(llama(), llama("tied")), std::pair(deepseek(), deepseek("tied"))}) {
    before.num_attention_heads = config.num_attention_heads = config.index_n_heads = 1;
    before.num_key_value_heads = config.num_key_value_heads = config.has_latents() ? 0 : 1;
    auto model = with_indexers({before, init_weights(before, 5)}, config, 1);
    auto batch = Numbers().get(3, 1).batch;
    auto rows = at::arange(40, 128);
    double recall = 0;
    std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t layer, const DenseAttention& seen) {
      auto attention = model.mean_attention(seen, batch, rows), chosen = model.indexer_choice(layer, seen, batch, rows, 12);
      auto best = std::get<0>(attention.topk(12, 1)).sum(1), got = attention.gather(1, chosen.clamp_min(0).to(at::kLong)).sum(1);
      recall += (got / best).mean().item<double>() / 2;
    };
    model.forward(batch, {.attention = Attention::dense, .watch = &watch});
    // Scores below 0 are cut off: a tie there is broken by place.
    EXPECT_GT(recall, 0.97) << config.model_type;
  }
}

TEST(Adapt, TeachingBringsTheKlDownAndLeavesEverythingElse) {
  for (const auto& [before_config, config] : {std::pair(llama(), llama("tied")),
                                              {llama(), llama("own")},
                                              {deepseek(), deepseek("tied")},
                                              {deepseek(), deepseek("own")}}) {
    auto keys = cat(config.model_type, " ", config.index_keys);
    auto model = with_indexers({before_config, init_weights(before_config, 5)}, config, 1);
    std::map<std::string, at::Tensor> before;
    for (const auto& [name, tensor] : export_weights(model.config(), model.weights())) before[name] = tensor.clone();
    auto [weights, kl] = taught(model, {.context = 128, .sequences = 20, .passes = 4, .rows = 48, .lr = 1e-2});
    EXPECT_EQ(kl.size(), 20u);
    EXPECT_LT(kl.back(), kl.front()) << keys;
    for (const auto& [name, tensor] : weights)
      EXPECT_EQ(at::equal(tensor, before.at(name)), name.find(".indexer.") == std::string::npos) << name;
    for (auto& parameter : parameters(model.weights())) EXPECT_FALSE(parameter.tensor->requires_grad()) << parameter.name;
  }
}

TEST(Adapt, IsAFunctionOfItsInputsOnAnyNumberOfThreadsAndBehindAResume) {
  IndexerTeaching teaching{.context = 128, .sequences = 6, .batch = 2, .passes = 2, .rows = 32};
  int before = threads();
  set_threads(1);
  auto one = taught(with_indexers(dense(), llama("tied"), 1), teaching);
  set_threads(2);
  auto two = taught(with_indexers(dense(), llama("tied"), 1), teaching);
  auto resumed = taught(with_indexers(dense(), llama("tied"), 1), teaching, 2);
  set_threads(before);
  expect_equal(one.first, two.first), expect_equal(one.first, resumed.first);
  EXPECT_EQ(one.second, two.second);
}

TEST(Adapt, RefusesAStateThatDoesNotFit) {
  auto model = with_indexers(dense(), llama("tied"), 1);
  ProcessGroup alone;
  IndexerTeacher teacher(model, {.context = 128}, alone);
  auto state = teacher.state();
  state["0.wq_b"] = at::zeros({3});
  EXPECT_THROW(teacher.load_state(state, 1), InputError);
}

}  // namespace
}  // namespace fulgur
