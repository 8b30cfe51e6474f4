#include "fulgur/eval/perplexity.h"

#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>

#include <chrono>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/model/probe.h"
#include "fulgur/ops/log_prob/log_prob.h"
#include "fulgur/train/batches.h"

namespace fulgur {

const char* form_name(EvalForm form) {
  return form == EvalForm::dense ? "dense" : form == EvalForm::sparse ? "sparse" : "window";
}

namespace {

// Adds up NLL and bytes in ranges of positions that double: [0, 128), [128, 256), [256, 512), ...
class ByPosition {
 public:
  void add(int64_t position, double nll, int64_t bytes) {
    size_t range = 0;
    for (int64_t p = position / kFirst; p > 0; p /= 2) ++range;
    if (sums_.size() <= range) sums_.resize(range + 1);
    ++sums_[range].tokens, sums_[range].nll += nll, sums_[range].bytes += bytes;
  }
  std::vector<PositionLoss> take() const {
    std::vector<PositionLoss> out;
    for (size_t i = 0; i < sums_.size(); ++i)
      out.push_back({i == 0 ? 0 : kFirst << (i - 1), kFirst << i, sums_[i].tokens,
                     sums_[i].nll / std::log(2.0) / double(std::max<int64_t>(1, sums_[i].bytes))});
    return out;
  }

 private:
  static constexpr int64_t kFirst = 128;
  struct Sum {
    int64_t tokens = 0, bytes = 0;
    double nll = 0;
  };
  std::vector<Sum> sums_;
};

// The rows of packed documents, whose keys go into a cache.
Batch through_cache(const Batch& batch) {
  const int *token = batch.tokens_N.const_data_ptr<int>(), *position = batch.positions_N.const_data_ptr<int>();
  std::vector<std::vector<int32_t>> tokens;
  for (int64_t i = 0; i < batch.tokens_N.size(0); ++i) {
    if (position[i] == 0) tokens.emplace_back();
    tokens.back().push_back(token[i]);
  }
  std::vector<CachedSequence> sequences(tokens.size());
  std::vector<CachedSequence*> all;
  int32_t page = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (int64_t p = 0; p < pages_for(int64_t(tokens[i].size())); ++p) sequences[i].pages.push_back(page++);
    all.push_back(&sequences[i]);
  }
  return append(all, tokens);
}

at::Tensor hidden_states(const Transformer& model, const Batch& batch, const ForwardOptions& options, CacheFormat format) {
  if (format.plain()) return model.forward(batch, options);
  auto cached = through_cache(batch);
  Cache cache(model.config(), options.attention, options.type, cached.pages_P.size(0), {.format = format});
  return model.forward(cached, options, &cache);
}

}  // namespace

Perplexity perplexity(const Transformer& model, const TokenShards& shards, const Tokenizer& tokenizer, EvalForm form,
                      int64_t context, int64_t tokens, at::ScalarType type, CacheFormat cache) {
  c10::AutoGradMode no_grad(false);
  Batches batches(shards, context, /*seed=*/0);
  int64_t micro = std::max<int64_t>(1, 4096 / context), text_bytes = 0;
  int64_t sequences = std::clamp<int64_t>(tokens / context, 1, batches.sequences_per_epoch());
  Perplexity out{form, context, 0, 0, 0, 0, {}};
  ByPosition by_position;
  double nll = 0;
  auto start = std::chrono::steady_clock::now();
  for (int64_t first = 0; first < sequences; first += micro) {
    auto b = batches.get(first, std::min(micro, sequences - first));
    Replay window;
    ForwardOptions options{.attention = form == EvalForm::dense ? Attention::dense : Attention::sparse, .type = type};
    if (form == EvalForm::window) {
      window.selected_NK.assign(model.config().num_hidden_layers, window_selection(b.batch, model.config().index_topk, 4));
      options.replay = &window;
    }
    auto hidden = hidden_states(model, b.batch, options, cache);
    auto log_prob_N = ops::log_prob(hidden, model.weights().lm_head, b.next_N);
    nll -= log_prob_N.sum(at::kDouble).item<double>();
    const int *target = b.next_N.const_data_ptr<int>(), *position = b.batch.positions_N.const_data_ptr<int>();
    const float* log_prob = log_prob_N.const_data_ptr<float>();
    for (int64_t i = 0; i < b.next_N.size(0); ++i) {
      if (target[i] < 0) continue;
      int64_t bytes = tokenizer.byte_length(target[i]);
      ++out.tokens, text_bytes += bytes;
      by_position.add(position[i], -log_prob[i], bytes);
    }
  }
  out.nll = nll / double(std::max<int64_t>(1, out.tokens));
  out.bits_per_byte = nll / std::log(2.0) / double(std::max<int64_t>(1, text_bytes));
  out.tokens_per_second = double(out.tokens) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  out.by_position = by_position.take();
  return out;
}

}  // namespace fulgur
