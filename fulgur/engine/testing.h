// Small models, many requests at once, and the plain forward pass to hold them against: what the tests of this room share.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <atomic>
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

// Sizes that every format can hold.
inline ModelConfig formats_config() {
  ModelConfig c = small_config();
  c.vocab_size = 224, c.hidden_size = 64, c.intermediate_size = 96, c.moe_intermediate_size = 32;
  c.q_lora_rank = 32, c.kv_lora_rank = 160, c.qk_nope_head_dim = 32, c.qk_rope_head_dim = 16, c.v_head_dim = 32;
  c.index_n_heads = 8, c.index_head_dim = 32, c.num_nextn_predict_layers = 1;
  validate(c, "formats");
  return c;
}

inline ModelConfig with_mtp(ModelConfig c) {
  c.num_nextn_predict_layers = 1;
  validate(c, "with MTP");
  return c;
}

// A model that likes to go on with token t + stride, and an MTP layer that foresees it: it adds stride to the next token in its
// turn. `layers` scales what all layers write into the stream: 0: nothing else has a say, and the MTP layer is always right.
inline Weights foreseeing(const ModelConfig& c, int64_t stride, double layers, double confidence = 7) {
  Weights w = init_weights(c, 7);
  auto embed_VD = w.embed_tokens;
  embed_VD.div_(embed_VD.square().mean(1, /*keepdim=*/true).sqrt());
  w.lm_head.copy_(embed_VD.roll(stride, 0) * (confidence / double(c.hidden_size)));
  MtpWeights& mtp = *w.mtp;
  mtp.eh_proj.mul_(layers).narrow(1, 0, c.hidden_size).add_(at::eye(c.hidden_size));
  auto quieten = [&](LayerWeights& layer) {
    layer.self_attn.o_proj.mul_(layers);
    if (layer.dense) layer.dense->down_proj.mul_(layers);
    if (layer.moe) layer.moe->down_proj.mul_(layers), layer.moe->shared_experts.down_proj.mul_(layers);
  };
  for (auto& layer : w.layers) quieten(layer);
  quieten(mtp.layer);
  return w;
}

inline int64_t page_bytes(const ModelConfig& c, const EngineOptions& o = {}) {
  if (!o.cache.plain())
    return Cache(c, Attention::sparse, o.bf16 ? at::kBFloat16 : at::kFloat, 1,
                 {.mtp = o.draft, .choices = o.record, .format = o.cache})
        .bytes();
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

// Many requests at once, from any threads, and what became of them.
class Crowd {
 public:
  struct One {
    Request request;
    Completion done;
    bool ended = false;
  };
  // With `on_end`, which the engine's thread calls, a request is its when it ends, and not kept.
  explicit Crowd(Engine& engine, std::function<void(std::shared_ptr<One>)> on_end = {})
      : engine_(engine),
        on_end_(std::move(on_end)) {}
  ~Crowd() { wait(); }
  Crowd(const Crowd&) = delete;
  Crowd& operator=(const Crowd&) = delete;

  uint64_t submit(Request request, std::function<void(const Event&)> also = {}) {
    auto one = std::make_shared<One>();
    one->request = request;
    {
      std::lock_guard lock(mutex_);
      if (!on_end_) all_.push_back(one);
      ++open_;
    }
    try {
      return engine_.submit(std::move(request), [this, one, also = std::move(also)](const Event& event) {
        if (also) also(event);
        take(one, event);
      });
    } catch (...) {
      std::lock_guard lock(mutex_);
      std::erase(all_, one);
      --open_;
      throw;
    }
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return open_ == 0; });
  }
  const std::vector<std::shared_ptr<One>>& all() const { return all_; }

 private:
  void take(const std::shared_ptr<One>& one, const Event& event) {
    std::lock_guard lock(mutex_);
    EXPECT_FALSE(one->ended) << "an event behind the last of request " << event.request;
    if (event.token) one->done.tokens.push_back(*event.token);
    if (!event.finish) return;
    one->ended = true;
    one->done.finish = *event.finish, one->done.error = event.error, one->done.cached_tokens = event.cached_tokens;
    if (event.record) one->done.record = *event.record;
    if (on_end_) on_end_(one);
    --open_;
    ended_.notify_all();
  }

  Engine& engine_;
  std::function<void(std::shared_ptr<One>)> on_end_;
  std::mutex mutex_;
  std::condition_variable ended_;
  std::vector<std::shared_ptr<One>> all_;
  int open_ = 0;
};

// The first `count` tokens of both, and all that is told of them.
inline void expect_same_tokens(const Completion& got, const Completion& expected, size_t count) {
  ASSERT_GE(got.tokens.size(), count);
  ASSERT_GE(expected.tokens.size(), count);
  for (size_t i = 0; i < count; ++i) {
    ASSERT_EQ(got.tokens[i].id, expected.tokens[i].id) << i;
    ASSERT_EQ(got.tokens[i].log_prob, expected.tokens[i].log_prob) << i;
    ASSERT_EQ(got.tokens[i].top, expected.tokens[i].top) << i;
    ASSERT_EQ(got.tokens[i].kept, expected.tokens[i].kept) << i;
  }
}
inline void expect_same(const Completion& got, const Completion& expected) {
  EXPECT_EQ(got.finish, expected.finish);
  EXPECT_EQ(got.error, expected.error);
  ASSERT_EQ(got.tokens.size(), expected.tokens.size());
  expect_same_tokens(got, expected, got.tokens.size());
}

inline at::Tensor of_layer(const Choices& choices, int64_t layer) {
  return at::tensor(choices.ids, at::kInt).view({choices.layers, choices.positions, choices.k})[layer];
}
// The record of a text's beginning, where a forward pass over all of it left this trace.
inline void expect_chosen(const Record& record, const Trace& trace, const ModelConfig& c, bool sparse) {
  int64_t dense = c.first_k_dense_replace, layers = c.num_hidden_layers, positions = record.experts.positions;
  ASSERT_EQ(record.experts.layers, layers - dense);
  ASSERT_EQ(record.selected.layers, sparse ? layers : 0);
  for (int64_t i = dense; i < layers; ++i)
    EXPECT_TRUE(at::equal(of_layer(record.experts, i - dense), trace[i].experts_Nk.narrow(0, 0, positions))) << i;
  for (int64_t i = 0; sparse && i < layers; ++i)
    EXPECT_TRUE(at::equal(of_layer(record.selected, i), trace[i].selected_NK.narrow(0, 0, positions))) << i;
}

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
  at::Tensor hidden_states(const at::Tensor& tokens, const EngineOptions& o, const Transformer& stored, Trace* trace) {
    auto type = o.bf16 ? at::kBFloat16 : at::kFloat;
    ForwardOptions options{.attention = o.dense ? Attention::dense : Attention::sparse, .type = type, .trace = trace};
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
  std::vector<float> by_hand(const std::vector<int32_t>& prompt, const std::vector<Token>& generated, const EngineOptions& o,
                             Trace* trace = nullptr) {
    std::vector<int32_t> all = prompt;
    for (const auto& token : generated) all.push_back(token.id);
    auto tokens = at::tensor(all, at::kInt);
    int64_t N = tokens.size(0), first = int64_t(prompt.size());
    const Transformer& stored = stored_as(o);
    auto rows = hidden_states(tokens, o, stored, trace).narrow(0, first - 1, N - first);
    auto log_prob = ops::log_prob(rows, stored.weights().lm_head, tokens.narrow(0, first, N - first));
    return {log_prob.const_data_ptr<float>(), log_prob.const_data_ptr<float>() + log_prob.numel()};
  }
  // From any threads, once stored_as(o) was called.
  void expect_same_bits(const Crowd::One& one, const EngineOptions& o, Trace* trace = nullptr) {
    auto expected = by_hand(one.request.prompt, one.done.tokens, o, trace);
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_EQ(one.done.tokens[i].log_prob, expected[i]) << "token " << i << " of a prompt of " << one.request.prompt.size();
      ++compared;
    }
  }

  // Cancelled here and there, in a cache too small for them: pages are reused, given up and computed again. Returns the texts.
  std::vector<Completion> crowd_equals_its_forward_passes(EngineOptions options);

  c10::AutoGradMode no_grad{false};
  Transformer model{small_config(), init_weights(small_config(), 7)};
  std::atomic<int64_t> compared = 0;
  EngineStatistics last;  // of the last crowd

 private:
  std::optional<Transformer> stored_;
  std::tuple<WeightFormat, bool, bool> stored_key_;
};

inline std::vector<Completion> EngineFixture::crowd_equals_its_forward_passes(EngineOptions options) {
  options.cache_bytes = 10 * page_bytes(model.config(), options), options.chunk = 48, options.max_batch = 6;
  options.check_pages = true;
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
