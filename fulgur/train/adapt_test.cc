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
  auto config = llama("tied");
  config.index_n_heads = 6;
  EXPECT_THROW(with_indexers(dense(), config, 1), InputError);
}

TEST(Adapt, TeachingKeepsMoreOfTheAttentionAndNeverMoreThanTheBestChoice) {
  for (const char* keys : {"tied", "own"}) {
    Numbers text;
    auto model = with_indexers(dense(), llama(keys), 1);
    auto held_out = text.get(900, 1).batch;
    auto before = attention_kept(model, held_out, 12, 64, 1);
    double first = 0, last = 0;
    int64_t calls = 0;
    teach_indexers(model, text, {.context = 128, .sequences = 20, .passes = 4, .rows = 48, .lr = 1e-2},
                   [&](int64_t done, double kl) {
                     EXPECT_EQ(done, ++calls);
                     (done == 1 ? first : last) = kl;
                     return true;
                   });
    auto behind = attention_kept(model, held_out, 12, 64, 1);
    EXPECT_EQ(calls, 20) << keys;
    EXPECT_LT(last, first) << keys;
    EXPECT_GT(behind.indexer, before.indexer) << keys;
    EXPECT_LE(behind.indexer, behind.oracle + 1e-6) << keys;
    EXPECT_NEAR(behind.oracle, before.oracle, 1e-6) << keys;
    for (auto& parameter : parameters(model.weights())) EXPECT_FALSE(parameter.tensor->requires_grad()) << parameter.name;
  }
}

TEST(Adapt, IsAFunctionOfItsInputsOnAnyNumberOfThreads) {
  Numbers text;
  int before = threads();
  auto taught = [&](int count) {
    set_threads(count);
    auto model = with_indexers(dense(), llama("tied"), 1);
    teach_indexers(model, text, {.context = 128, .sequences = 3, .passes = 2, .rows = 32}, [](int64_t, double) { return true; });
    return export_weights(model.config(), model.weights());
  };
  auto one = taught(1), two = taught(2);
  set_threads(before);
  for (const auto& [name, tensor] : one) EXPECT_TRUE(at::equal(tensor, two.at(name))) << name;
}

}  // namespace
}  // namespace fulgur
