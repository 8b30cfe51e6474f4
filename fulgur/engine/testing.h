// Small models, many requests at once, and the plain forward pass to hold them against: what the tests of this room share.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>

#include "fulgur/base/random.h"
#include "fulgur/engine/engine.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {

constexpr int64_t kVocab = 211;

inline ModelConfig small_config() {
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
inline ModelConfig packed_config() {
  ModelConfig c = small_config();
  c.hidden_size = 48, c.intermediate_size = 80, c.moe_intermediate_size = 32;
  c.q_lora_rank = 32, c.kv_lora_rank = 16, c.qk_nope_head_dim = 8, c.qk_rope_head_dim = 16, c.v_head_dim = 16;
  c.index_n_heads = 16, c.index_head_dim = 16;
  validate(c, "packed");
  return c;
}

inline int64_t page_bytes(const ModelConfig& c, const EngineOptions& o = {}) {
  if (!o.cache.plain())
    return Cache(c, Attention::sparse, o.bf16 ? at::kBFloat16 : at::kFloat, 1, {.mtp = o.draft, .format = o.cache}).bytes();
  int64_t values = o.dense ? c.num_attention_heads * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim)
                           : c.kv_lora_rank + c.qk_rope_head_dim + c.index_head_dim;
  int64_t choices = (c.num_hidden_layers - c.first_k_dense_replace) * c.num_experts_per_tok;
  if (!o.dense) choices += c.num_hidden_layers * c.index_topk;
  return ((c.num_hidden_layers + o.draft) * values * (o.bf16 ? 2 : 4) + (o.record ? choices * 4 : 0)) * 64;
}

inline std::vector<int32_t> text(RandomStream& random, int64_t length) {
  std::vector<int32_t> tokens(length);
  for (int32_t& token : tokens) token = int32_t(random.below(kVocab));
  return tokens;
}

// Many requests at once, and what became of them.
class Crowd {
 public:
  explicit Crowd(Engine& engine) : engine_(engine) {}
  ~Crowd() { wait(); }
  Crowd(const Crowd&) = delete;
  Crowd& operator=(const Crowd&) = delete;

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
      if (event.record) one->done.record = *event.record;
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

// Texts that share beginnings, of any length, with three priorities.
inline std::vector<Request> many_requests() {
  RandomStream random(11, "crowd");
  std::vector<std::vector<int32_t>> stems{text(random, 150), text(random, 90), {}};
  std::vector<Request> requests;
  for (int i = 0; i < 60; ++i) {
    auto prompt = stems[random.below(stems.size())];
    prompt.resize(std::min<size_t>(prompt.size(), 1 + random.below(160)));
    auto tail = text(random, 1 + int64_t(random.below(120)));
    prompt.insert(prompt.end(), tail.begin(), tail.end());
    Request request{.prompt = prompt, .max_tokens = 1 + int64_t(random.below(230)), .priority = int(random.below(3))};
    request.sampling = {.temperature = i % 3 == 0 ? 0.0 : 0.8, .top_p = i % 2 == 0 ? 0.9 : 1.0, .seed = uint64_t(i)};
    requests.push_back(request);
  }
  return requests;
}

class EngineFixture : public testing::Test {
 protected:
  // The weights and the cache in the engine's formats, the text in one piece.
  at::Tensor hidden_states(const at::Tensor& tokens, const EngineOptions& o, const Transformer& stored) {
    auto type = o.bf16 ? at::kBFloat16 : at::kFloat;
    ForwardOptions options{.attention = o.dense ? Attention::dense : Attention::sparse, .type = type};
    int64_t N = tokens.size(0);
    if (o.cache.plain()) return stored.forward(pack_documents(tokens, {N}), options);
    Cache cache(stored.config(), options.attention, type, pages_for(N), {.format = o.cache});
    auto sequence = cached_sequences(1, N)[0];
    std::vector<int32_t> all(tokens.const_data_ptr<int>(), tokens.const_data_ptr<int>() + N);
    return stored.forward(append({&sequence}, {all}), options, &cache);
  }
  const Transformer& stored_as(const EngineOptions& o) {
    if (o.weights == WeightFormat::plain) return model;
    auto key = std::tuple(o.weights, o.bf16, o.dense);
    if (!stored_ || stored_key_ != key) {
      auto type = o.bf16 ? at::kBFloat16 : at::kFloat;
      stored_.emplace(model.config(), pack_weights(model.config(), model.weights(), type, !o.dense, o.weights));
      stored_key_ = key;
    }
    return *stored_;
  }

  // The forward pass over the finished text: log-probabilities of its generated tokens.
  std::vector<float> by_hand(const std::vector<int32_t>& prompt, const std::vector<Token>& generated, const EngineOptions& o) {
    std::vector<int32_t> all = prompt;
    for (const auto& token : generated) all.push_back(token.id);
    auto tokens = at::tensor(all, at::kInt);
    int64_t N = tokens.size(0), first = int64_t(prompt.size());
    const Transformer& stored = stored_as(o);
    auto rows = hidden_states(tokens, o, stored).narrow(0, first - 1, N - first);
    auto log_prob = ops::log_prob(rows, stored.weights().lm_head, tokens.narrow(0, first, N - first));
    return {log_prob.const_data_ptr<float>(), log_prob.const_data_ptr<float>() + log_prob.numel()};
  }
  void expect_same_bits(const Crowd::One& one, const EngineOptions& o) {
    auto expected = by_hand(one.request.prompt, one.done.tokens, o);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(one.done.tokens[i].log_prob, expected[i]) << "token " << i << " of a prompt of " << one.request.prompt.size();
      ++compared;
    }
  }

  // Cancelled here and there, in a cache too small for them: pages are reused, given up and computed again. Returns the texts.
  std::vector<Completion> crowd_equals_its_forward_passes(EngineOptions options);

  c10::AutoGradMode no_grad{false};
  Transformer model{small_config(), init_weights(small_config(), 7)};
  int64_t compared = 0;
  EngineStatistics last;  // of the last crowd

 private:
  std::optional<Transformer> stored_;
  std::tuple<WeightFormat, bool, bool> stored_key_;
};

inline std::vector<Completion> EngineFixture::crowd_equals_its_forward_passes(EngineOptions options) {
  options.cache_bytes = 10 * page_bytes(model.config(), options), options.chunk = 48, options.max_batch = 6;
  Engine engine(model, options);
  std::vector<Completion> texts;
  {
    Crowd crowd(engine);
    auto requests = many_requests();
    for (size_t i = 0; i < requests.size(); ++i)
      if (auto id = crowd.submit(requests[i]); i % 7 == 0) engine.cancel(id);
    crowd.wait();
    int64_t cancelled = 0;
    for (const auto& one : crowd.all()) {
      cancelled += one->done.finish == Finish::cancelled;
      EXPECT_NE(one->done.finish, Finish::failed) << one->done.error;
      EXPECT_TRUE(one->done.finish != Finish::length || int64_t(one->done.tokens.size()) == one->request.max_tokens);
      expect_same_bits(*one, options);
      texts.push_back(one->done);
    }
    EXPECT_GT(cancelled, 0);
  }
  last = engine.statistics();
  EXPECT_EQ(last.pages, 10);
  EXPECT_EQ(last.running, 0);
  EXPECT_EQ(last.pages_free + last.pages_cached, last.pages);
  EXPECT_GT(last.preemptions, 0);
  EXPECT_GT(last.evictions, 0);
  EXPECT_GT(last.cached_tokens, 500);
  return texts;
}

}  // namespace fulgur
