#include "fulgur/train/conversations.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"

namespace fulgur {

Conversations::Conversations(std::vector<Sample> samples, BatchSource& text, const StageConfig& config)
    : samples_(std::move(samples)),
      text_(text),
      text_share_(config.text_share),
      context_(config.context),
      step_sequences_(config.batch_tokens / config.context),
      seed_(config.seed),
      shuffle_(config.shuffle) {
  FULGUR_CHECK(text_share_ < 1, "[sft] text_share: expected less than 1, got ", text_share_);
  packed(0);
}

int64_t Conversations::sequences_per_epoch() const { return first_[1]; }

const std::vector<std::vector<size_t>>& Conversations::packed(int64_t epoch) {
  if (epoch == epoch_) return of_epoch_;
  RandomStream random(seed_, cat("conversations.epoch.", epoch));
  std::vector<size_t> order(samples_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (shuffle_) shuffle(order, random);
  of_epoch_.clear();
  int64_t room = 0;
  for (size_t i : order) {
    int64_t length = int64_t(samples_[i].tokens.size());
    if (length > room) of_epoch_.emplace_back(), room = context_;
    of_epoch_.back().push_back(i), room -= length;
  }
  epoch_ = epoch;
  if (epoch + 1 == int64_t(first_.size())) first_.push_back(first_.back() + int64_t(of_epoch_.size()));
  return of_epoch_;
}

const std::vector<size_t>& Conversations::sequence(int64_t number) {
  while (number >= first_.back()) packed(int64_t(first_.size()) - 1);
  int64_t epoch = std::upper_bound(first_.begin(), first_.end(), number) - first_.begin() - 1;
  return packed(epoch)[number - first_[epoch]];
}

bool Conversations::is_text(int64_t step) const { return text_steps_before(step + 1) > text_steps_before(step); }

int64_t Conversations::text_steps_before(int64_t step) const { return int64_t(std::floor(double(step) * text_share_)); }

// Sequences of text among the first ones.
int64_t Conversations::text_before(int64_t number) const {
  int64_t step = number / step_sequences_;
  return text_steps_before(step) * step_sequences_ + (is_text(step) ? number % step_sequences_ : 0);
}

TrainBatch Conversations::get(int64_t first, int64_t count) {
  std::vector<int32_t> tokens, next, next2, starts{0};
  std::vector<int64_t> lengths;
  int64_t texts = text_before(first + count) - text_before(first);
  for (int64_t n = first; n < first + count; ++n) {
    if (text_before(n + 1) > text_before(n)) continue;
    for (size_t i : sequence(n - text_before(n))) {
      const auto& [ids, learned, prompt] = samples_[i];
      auto target = [&](size_t at) { return at < ids.size() && learned[at] ? ids[at] : -1; };
      for (size_t t = 0; t < ids.size(); ++t)
        tokens.push_back(ids[t]), next.push_back(target(t + 1)), next2.push_back(target(t + 2));
      lengths.push_back(int64_t(ids.size()));
    }
    starts.push_back(int32_t(tokens.size()));
  }
  if (texts == count) return text_.get(text_before(first), texts);
  TrainBatch out{pack_documents(at::tensor(tokens, at::kInt), lengths), at::tensor(next, at::kInt), at::tensor(next2, at::kInt),
                 at::tensor(starts, at::kInt)};
  if (texts == 0) return out;
  auto text = text_.get(text_before(first), texts);
  auto rows = int32_t(tokens.size());
  auto both = [](const at::Tensor& a, const at::Tensor& b) { return at::cat({a, b}); };
  return {{.tokens_N = both(out.batch.tokens_N, text.batch.tokens_N),
           .positions_N = both(out.batch.positions_N, text.batch.positions_N),
           .visible_N2 = both(out.batch.visible_N2, text.batch.visible_N2 + rows)},
          both(out.next_N, text.next_N),
          both(out.next2_N, text.next2_N),
          both(out.starts, text.starts.slice(0, 1) + rows)};
}

}  // namespace fulgur
