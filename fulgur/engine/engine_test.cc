// What a sequence gets does not depend on its company: every one equals the plain forward pass over its own text, bit for bit.
#include "fulgur/engine/engine.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "fulgur/base/random.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

constexpr int64_t kVocab = 211;

ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = kVocab, c.hidden_size = 44, c.intermediate_size = 70, c.moe_intermediate_size = 18;
  c.num_hidden_layers = 3, c.first_k_dense_replace = 1, c.num_attention_heads = 5;
  c.q_lora_rank = 28, c.kv_lora_rank = 20, c.qk_nope_head_dim = 12, c.qk_rope_head_dim = 6, c.v_head_dim = 10;
  c.n_routed_experts = 6, c.n_shared_experts = 1, c.num_experts_per_tok = 2, c.n_group = 3, c.topk_group = 2;
  c.index_n_heads = 3, c.index_head_dim = 14, c.index_topk = 40, c.max_position_embeddings = 512;
  c.initializer_range = 0.2;
  validate(c, "small");
  return c;
}

// Sizes whose weights are all packed.
ModelConfig packed_config() {
  ModelConfig c = small_config();
  c.hidden_size = 48, c.intermediate_size = 80, c.moe_intermediate_size = 32;
  c.q_lora_rank = 32, c.kv_lora_rank = 16, c.qk_nope_head_dim = 8, c.qk_rope_head_dim = 16, c.v_head_dim = 16;
  c.index_n_heads = 16, c.index_head_dim = 16;
  validate(c, "packed");
  return c;
}

int64_t page_bytes(bool bf16, const ModelConfig& c = small_config()) {
  return c.num_hidden_layers * (c.kv_lora_rank + c.qk_rope_head_dim + c.index_head_dim) * (bf16 ? 2 : 4) * 64;
}

std::vector<int32_t> text(RandomStream& random, int64_t length) {
  std::vector<int32_t> tokens(length);
  for (int32_t& token : tokens) token = int32_t(random.below(kVocab));
  return tokens;
}

// Many requests at once, and what became of them.
class Crowd {
 public:
  explicit Crowd(Engine& engine) : engine_(engine) {}
  ~Crowd() { wait(); }

  uint64_t submit(Request request, std::function<void(const Event&)> also = {}) {
    One* one;
    {
      std::lock_guard lock(mutex_);
      one = all_.emplace_back(std::make_unique<One>()).get();
      ++open_;
    }
    one->request = request;
    auto on_event = [this, one, also = std::move(also)](const Event& event) {
      if (also) also(event);
      std::lock_guard lock(mutex_);
      if (event.token) one->done.tokens.push_back(*event.token);
      if (!event.finish) return;
      one->done.finish = *event.finish, one->done.error = event.error;
      --open_;
      ended_.notify_all();
    };
    try {
      return engine_.submit(std::move(request), on_event);
    } catch (...) {
      std::lock_guard lock(mutex_);
      --open_;
      throw;
    }
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return open_ == 0; });
  }
  struct One {
    Request request;
    Completion done;
  };
  const std::vector<std::unique_ptr<One>>& all() const { return all_; }

 private:
  Engine& engine_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<std::unique_ptr<One>> all_;
  int open_ = 0;
};

class EngineTest : public testing::Test {
 protected:
  // The forward pass over the finished text: log-probabilities of its generated tokens.
  std::vector<float> by_hand(const std::vector<int32_t>& prompt, const std::vector<Token>& generated, const EngineOptions& o) {
    std::vector<int32_t> all = prompt;
    for (const auto& token : generated) all.push_back(token.id);
    auto tokens = at::tensor(all, at::kInt);
    int64_t N = tokens.size(0), first = int64_t(prompt.size());
    auto hidden = model.forward(pack_documents(tokens, {N}), {.attention = o.dense ? Attention::dense : Attention::sparse,
                                                              .type = o.bf16 ? at::kBFloat16 : at::kFloat});
    auto log_prob =
        ops::log_prob(hidden.narrow(0, first - 1, N - first), model.weights().lm_head, tokens.narrow(0, first, N - first));
    return {log_prob.const_data_ptr<float>(), log_prob.const_data_ptr<float>() + log_prob.numel()};
  }
  void expect_same_bits(const Crowd::One& one, const EngineOptions& o) {
    auto expected = by_hand(one.request.prompt, one.done.tokens, o);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(one.done.tokens[i].log_prob, expected[i]) << "token " << i << " of a prompt of " << one.request.prompt.size();
      ++compared;
    }
  }

  void crowd_equals_its_forward_passes(bool dense, bool bf16);

  c10::AutoGradMode no_grad{false};
  Transformer model{small_config(), init_weights(small_config(), 7)};
  int64_t compared = 0;
};

// Texts that share beginnings, of any length, cancelled here and there, in a cache too small for them: pages are reused, given up
// and computed again.
void EngineTest::crowd_equals_its_forward_passes(bool dense, bool bf16) {
  EngineOptions options{.dense = dense,
                        .bf16 = bf16,
                        .cache_bytes = 14 * page_bytes(bf16, model.config()) * (dense ? 4 : 1),
                        .chunk = 48,
                        .max_batch = 6};
  RandomStream random(11, "crowd");
  std::vector<std::vector<int32_t>> stems{text(random, 150), text(random, 90), {}};
  Engine engine(model, options);
  {
    Crowd crowd(engine);
    for (int i = 0; i < 60; ++i) {
      auto prompt = stems[random.below(stems.size())];
      prompt.resize(std::min<size_t>(prompt.size(), 1 + random.below(160)));
      auto tail = text(random, 1 + int64_t(random.below(120)));
      prompt.insert(prompt.end(), tail.begin(), tail.end());
      Request request{.prompt = prompt, .max_tokens = 1 + int64_t(random.below(230)), .priority = int(random.below(3))};
      request.sampling = {.temperature = i % 3 == 0 ? 0.0 : 0.8, .top_p = i % 2 == 0 ? 0.9 : 1.0, .seed = uint64_t(i)};
      auto id = crowd.submit(request);
      if (i % 7 == 0) engine.cancel(id);
    }
    crowd.wait();
    int64_t cancelled = 0;
    for (const auto& one : crowd.all()) {
      cancelled += one->done.finish == Finish::cancelled;
      EXPECT_NE(one->done.finish, Finish::failed) << one->done.error;
      EXPECT_TRUE(one->done.finish != Finish::length || int64_t(one->done.tokens.size()) == one->request.max_tokens);
      expect_same_bits(*one, options);
    }
    EXPECT_GT(cancelled, 0);
  }
  while (engine.statistics().running > 0) std::this_thread::yield();
  auto s = engine.statistics();
  EXPECT_EQ(s.pages_free + s.pages_cached, s.pages);
  EXPECT_GT(s.preemptions, 0);
  EXPECT_GT(s.evictions, 0);
  EXPECT_GT(s.cached_tokens, 500);
}

TEST_F(EngineTest, EverySequenceEqualsItsForwardPassWhateverHappens) {
  for (auto [dense, bf16] : {std::pair{false, false}, {false, true}, {true, false}}) crowd_equals_its_forward_passes(dense, bf16);
  EXPECT_GT(compared, 8000);
}

TEST_F(EngineTest, PackedWeightsChangeNoBit) {
  model = Transformer(packed_config(), init_weights(packed_config(), 8));
  for (auto [dense, bf16] : {std::pair{false, false}, {false, true}, {true, true}}) crowd_equals_its_forward_passes(dense, bf16);
  EXPECT_GT(compared, 8000);
}

TEST_F(EngineTest, ASeedGivesTheSameTextInAnyBatch) {
  RandomStream random(3, "seed");
  Request request{.prompt = text(random, 70), .max_tokens = 40, .sampling = {.top_p = 0.95, .seed = 5}, .top_log_probs = 3};
  Engine alone(model, {.chunk = 7}), busy(model, {.cache_bytes = 40 * page_bytes(false), .chunk = 64});
  auto expected = complete(alone, request);
  Crowd crowd(busy);
  for (int i = 0; i < 8; ++i) crowd.submit({.prompt = text(random, 30 + 20 * i), .max_tokens = 60});
  auto got = complete(busy, request);
  ASSERT_EQ(got.tokens.size(), 40u);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(got.tokens[i].id, expected.tokens[i].id);
    EXPECT_EQ(got.tokens[i].top, expected.tokens[i].top);
    EXPECT_EQ(got.tokens[i].kept, expected.tokens[i].kept);
    EXPECT_EQ(got.tokens[i].top.size(), 3u);
    EXPECT_FALSE(got.tokens[i].kept.empty());
  }
}

TEST_F(EngineTest, ABeginningIsReadOnce) {
  RandomStream random(4, "prefix");
  Engine engine(model, {});
  auto prompt = text(random, 300);
  EXPECT_EQ(complete(engine, {.prompt = prompt, .max_tokens = 5}).cached_tokens, 0);
  EXPECT_EQ(complete(engine, {.prompt = prompt, .max_tokens = 5}).cached_tokens, 299);
  prompt.resize(270);
  EXPECT_EQ(complete(engine, {.prompt = prompt, .max_tokens = 5}).cached_tokens, 269);
  // Sixteen of one prompt at once: one reads it.
  auto shared = text(random, 200);
  int64_t before = engine.statistics().rows;
  Crowd crowd(engine);
  for (int i = 0; i < 16; ++i) crowd.submit({.prompt = shared, .max_tokens = 2, .sampling = {.seed = uint64_t(i)}});
  crowd.wait();
  EXPECT_LT(engine.statistics().rows - before, 200 + 16 * (8 + 2));
  for (const auto& one : crowd.all()) expect_same_bits(*one, {});
}

TEST_F(EngineTest, StopTokensAndLengthsEndATextAndFullContextsToo) {
  RandomStream random(5, "stop");
  Engine engine(model, {.max_context = 100});
  Request request{.prompt = text(random, 20), .max_tokens = 30, .sampling = {.temperature = 0}};
  auto free = complete(engine, request);
  EXPECT_EQ(free.finish, Finish::length);
  ASSERT_EQ(free.tokens.size(), 30u);
  request.stop_tokens = {free.tokens[10].id};
  auto stopped = complete(engine, request);
  EXPECT_EQ(stopped.finish, Finish::stop);
  EXPECT_LE(stopped.tokens.size(), 11u);
  EXPECT_EQ(stopped.tokens.back().id, free.tokens[10].id);
  request.stop_tokens = {}, request.max_tokens = 1000;
  auto full = complete(engine, request);
  EXPECT_EQ(full.finish, Finish::length);
  EXPECT_EQ(full.tokens.size(), 80u);
}

// A sequence that generates gets a token each step, so its tokens count the steps: the short request's first token comes with the
// second step after it was submitted, while the long prompt is being read.
TEST_F(EngineTest, AShortRequestDoesNotWaitForALongPrompt) {
  RandomStream random(6, "long");
  Engine engine(model, {.cache_bytes = 32 * page_bytes(false), .chunk = 16});
  Crowd crowd(engine);
  auto short_prompt = text(random, 10), long_prompt = text(random, 500);
  int64_t steps = 0, submitted = 0, answered = 0, long_answered = 0;  // of the engine's thread until it is done
  crowd.submit({.prompt = {1}, .max_tokens = 60}, [&](const Event& event) {
    if (!event.token || ++steps != 5) return;
    submitted = steps;
    crowd.submit({.prompt = long_prompt, .max_tokens = 1});  // waits for the text to be read, and lets others by
    crowd.submit({.prompt = short_prompt, .max_tokens = 1}, [&](const Event& event) {
      if (event.token) answered = steps;
    });
  });
  crowd.submit({.prompt = long_prompt, .max_tokens = 1}, [&](const Event& event) {
    if (event.token) long_answered = steps;
  });
  crowd.wait();
  EXPECT_EQ(submitted, 5);
  EXPECT_LE(answered - submitted, 2);
  EXPECT_GT(long_answered, 30);  // its 500 tokens, 16 a step
}

TEST_F(EngineTest, MistakesAreNamedAndOthersGoOn) {
  Engine engine(model, {.cache_bytes = 2 * page_bytes(false), .max_waiting = 2});
  auto message = [&](const Request& request) -> std::string {
    try {
      complete(engine, request);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({}).find("prompt: expected at least one token"), std::string::npos);
  EXPECT_NE(message({.prompt = {1, 211}}).find("expected token ids below 211, got 211"), std::string::npos);
  EXPECT_NE(message({.prompt = {-1}}).find("got -1"), std::string::npos);
  EXPECT_NE(message({.prompt = std::vector<int32_t>(128, 1)}).find("fewer than 128 tokens (context and memory), got 128"),
            std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .max_tokens = 0}).find("max_tokens"), std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .sampling = {.top_p = 2}}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .top_log_probs = -1}).find("top_log_probs"), std::string::npos);
  EXPECT_EQ(complete(engine, {.prompt = {1}, .max_tokens = 3}).tokens.size(), 3u);
  EXPECT_THROW(Engine(model, {.cache_bytes = 10}), InputError);
  EXPECT_THROW(Engine(model, {.chunk = 0}), InputError);
  Crowd crowd(engine);
  EXPECT_THROW(for (int i = 0; i < 100; ++i) crowd.submit({.prompt = {int32_t(i)}, .max_tokens = 100}), QueueFull);
}

TEST_F(EngineTest, LogitsThatAreNotNumbersFailTheirSequence) {
  auto weights = init_weights(small_config(), 7);
  weights.embed_tokens[5].fill_(NAN);
  Transformer broken(small_config(), std::move(weights));
  Engine engine(broken, {});
  auto bad = complete(engine, {.prompt = {4, 5}, .max_tokens = 3});
  EXPECT_EQ(bad.finish, Finish::failed);
  EXPECT_NE(bad.error.find("finite logits"), std::string::npos);
  EXPECT_EQ(complete(engine, {.prompt = {4, 6}, .max_tokens = 1, .sampling = {.logit_bias = {{5, -100}}}}).finish,
            Finish::length);
}

TEST_F(EngineTest, EndingTheEngineCancelsWhatRuns) {
  Completion done;
  {
    Engine engine(model, {});
    engine.submit({.prompt = {1}, .max_tokens = 400}, [&](const Event& event) {
      if (event.finish) done.finish = *event.finish;
    });
  }
  EXPECT_EQ(done.finish, Finish::cancelled);
}

}  // namespace
}  // namespace fulgur
