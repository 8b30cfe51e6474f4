#include "fulgur/eval/evaluate.h"

#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>

#include "fulgur/base/random.h"
#include "fulgur/model/probe.h"
#include "fulgur/train/batches.h"

namespace fulgur {

Json evaluate_perplexity(const Transformer& model, const std::filesystem::path& data, const std::vector<EvalForm>& forms,
                         const std::vector<int64_t>& contexts, int64_t tokens, at::ScalarType type, CacheFormat cache) {
  TokenShards shards(data, "valid");
  Tokenizer tokenizer(data / "tokenizer.json");
  Json out = Json::array();
  for (int64_t context : contexts)
    for (auto form : forms) {
      auto p = perplexity(model, shards, tokenizer, form, context, tokens, type, cache);
      Json by_position = Json::array();
      for (const auto& range : p.by_position)
        by_position.push_back(
            {{"first", range.first}, {"last", range.last}, {"tokens", range.tokens}, {"bits_per_byte", range.bits_per_byte}});
      out.push_back({{"form", form_name(form)},
                     {"context", context},
                     {"tokens", p.tokens},
                     {"nll", p.nll},
                     {"bits_per_byte", p.bits_per_byte},
                     {"tokens_per_second", p.tokens_per_second},
                     {"by_position", by_position}});
    }
  return out;
}

Json evaluate_indexer(const Transformer& model, const std::filesystem::path& data, int64_t context, int64_t sequences,
                      KeyFormat keys) {
  TokenShards shards(data, "valid");
  Batches batches(shards, context, /*seed=*/0);
  std::vector<IndexerQuality> sum(model.config().num_hidden_layers);
  for (int64_t i = 0; i < std::min(sequences, batches.sequences_per_epoch()); ++i) {
    auto found = probe_indexer(model, batches.get(i, 1).batch, {}, keys);
    for (size_t layer = 0; layer < found.size(); ++layer) {
      auto &s = sum[layer], &q = found[layer];
      double rows = double(q.rows);
      s.recall += q.recall * rows, s.mass += q.mass * rows, s.rows += q.rows;
      s.window_recall += q.window_recall * rows, s.window_mass += q.window_mass * rows;
    }
  }
  Json recall = Json::array(), mass = Json::array(), window_recall = Json::array(), window_mass = Json::array();
  for (const auto& s : sum) {
    double rows = double(std::max<int64_t>(1, s.rows));
    recall.push_back(s.recall / rows), mass.push_back(s.mass / rows);
    window_recall.push_back(s.window_recall / rows), window_mass.push_back(s.window_mass / rows);
  }
  return {{"recall", recall}, {"mass", mass}, {"window_recall", window_recall}, {"window_mass", window_mass}};
}

Json measure_cost(const Transformer& model, const std::vector<int64_t>& contexts) {
  c10::AutoGradMode no_grad(false);
  using Clock = std::chrono::steady_clock;
  constexpr int kTimed = 24;
  Json out = Json::array();
  RandomStream random(1, "cost");
  int64_t longest = *std::max_element(contexts.begin(), contexts.end()) + kTimed;
  for (auto attention : {Attention::dense, Attention::sparse}) {
    Cache cache(model.config(), attention, at::kFloat, pages_for(longest));
    auto sequence = cached_sequences(1, longest)[0];
    auto feed = [&](int64_t count) {
      std::vector<int32_t> tokens;
      for (int64_t i = 0; i < count; ++i) tokens.push_back(int32_t(random.below(model.config().vocab_size)));
      model.forward(append({&sequence}, {tokens}), {.attention = attention}, &cache);
    };
    for (int64_t context : contexts) {
      while (sequence.length < context) feed(std::min<int64_t>(512, context - sequence.length));
      std::vector<double> seconds;
      for (int i = 0; i < kTimed; ++i) {
        auto start = Clock::now();
        feed(1);
        seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
      std::nth_element(seconds.begin(), seconds.begin() + kTimed / 2, seconds.end());
      sequence.length = context;  // the timed tokens are forgotten
      out.push_back(
          {{"form", attention == Attention::dense ? "dense" : "sparse"}, {"context", context}, {"seconds", seconds[kTimed / 2]}});
    }
  }
  return out;
}

Json selection_maps(const Transformer& model, const std::filesystem::path& data, int64_t context, int64_t cells) {
  c10::AutoGradMode no_grad(false);
  TokenShards shards(data, "valid");
  auto batch = Batches(shards, context, /*seed=*/0).get(0, 1).batch;
  int64_t N = batch.tokens_N.size(0);
  Trace dense, sparse;
  model.forward(batch, {.attention = Attention::dense, .trace = &dense, .trace_scores = true});
  model.forward(batch, {.attention = Attention::sparse, .trace = &sparse});
  Json out = Json::array();
  for (size_t layer = 0; layer < sparse.size(); ++layer) {
    std::vector<double> selected(cells * cells), attention(cells * cells);
    const float* p = dense[layer].attention_NS.const_data_ptr<float>();
    const int* keys = sparse[layer].selected_NK.const_data_ptr<int>();
    int64_t K = sparse[layer].selected_NK.size(1);
    double per_cell = double(N) / double(cells);
    for (int64_t row = 0; row < N; ++row) {
      int64_t y = row * cells / N;
      for (int64_t i = 0; i < K; ++i)
        if (int key = keys[row * K + i]; key >= 0) selected[y * cells + key * cells / N] += 1 / (per_cell * per_cell);
      for (int64_t key = 0; key <= row; ++key) attention[y * cells + key * cells / N] += p[row * N + key] / per_cell;
    }
    auto rounded = [](std::vector<double>& values) {
      for (double& v : values) v = std::round(v * 1000) / 1000;
      return values;
    };
    out.push_back({{"selected", rounded(selected)}, {"attention", rounded(attention)}});
  }
  return out;
}

}  // namespace fulgur
