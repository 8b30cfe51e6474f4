// A step: rows through the model, tokens drawn from their logits, and drafts of the tokens behind.
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/threads.h"
#include "fulgur/engine/loop.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

// Stretches of texts, as the rows of one batch.
class Rows {
 public:
  // `count` tokens from `first` on, and perhaps one more.
  void add(const Sequence& sequence, int64_t first, int64_t count, std::optional<int32_t> last) {
    places_.push_back({sequence.held.pages, first});
    auto from = sequence.tokens.begin() + first;
    auto& tokens = tokens_.emplace_back(from, from + count);
    if (last) tokens.push_back(*last);
    count_ += int64_t(tokens.size());
  }
  int64_t count() const { return count_; }
  Batch batch() {
    std::vector<CachedSequence*> all;
    for (auto& place : places_) all.push_back(&place);
    return append(all, tokens_);
  }

 private:
  std::vector<CachedSequence> places_;
  std::vector<std::vector<int32_t>> tokens_;
  int64_t count_ = 0;
};

at::Tensor pick(const at::Tensor& x_ND, std::vector<int64_t>& rows) {
  return x_ND.index_select(0, at::from_blob(rows.data(), {int64_t(rows.size())}, at::kLong));
}

std::span<const float> row_of(const at::Tensor& logits_NV, int64_t row) {
  int64_t V = logits_NV.size(1);
  return {logits_NV.const_data_ptr<float>() + row * V, size_t(V)};
}

// Of a draw; greedy ones have no distribution.
float kept_log_prob_of(std::span<const float> logits, const Draw& of, const Sampling& sampling, float lse) {
  if (sampling.temperature == 0) return 0;
  if (sampling.temperature == 1 && of.kept.empty()) return logits[of.token] - lse;
  return ops::kept_log_prob(logits, of.kept, sampling.temperature, of.token);
}

// The tokens a sequence's constraint allows next; empty: all.
TokenMask allowed_next(const Sequence& sequence) {
  const auto& request = sequence.request;
  if (!request.constraint) return {};
  TokenMask out = *request.constraint->mask(sequence.constrained);
  if (request.constraint->may_end(sequence.constrained))
    for (int32_t id : request.stop_tokens)
      if (size_t(id) / 64 < out.size()) out[id / 64] |= uint64_t(1) << id % 64;
  return out;
}

}  // namespace

void Engine::Loop::step(std::vector<Part> parts) {
  auto hidden_ND = forward(parts);
  std::vector<Part*> ready;
  for (auto& part : parts) {
    part.sequence->computed += part.rows;
    if (part.sequence->missing() == 0) ready.push_back(&part);
  }
  if (!ready.empty()) sample(ready, logits(ready, hidden_ND));
  std::erase_if(parts, [](const Part& part) { return !part.sequence; });
  if (options_.draft && !parts.empty()) draft(parts, hidden_ND);
  for (const auto& part : parts) tree_.publish(part.sequence->tokens, part.sequence->computed, part.sequence->held);
}

at::Tensor Engine::Loop::forward(std::vector<Part>& parts) {
  Rows rows;
  for (auto& part : parts) {
    part.first_row = rows.count();
    rows.add(*part.sequence, part.sequence->computed, part.rows, part.sequence->draft);
  }
  ++now_.steps, now_.rows += rows.count();
  return model_.forward(rows.batch(), {.attention = attention(), .type = type()}, &cache_);
}

// Of the last row of each text, and of its draft's behind it.
at::Tensor Engine::Loop::logits(const std::vector<Part*>& ready, const at::Tensor& hidden_ND) {
  std::vector<int64_t> rows;
  for (Part* part : ready) {
    part->logits_row = int64_t(rows.size());
    int64_t last = part->first_row + part->rows - 1;
    rows.push_back(last);
    if (part->sequence->draft) rows.push_back(last + 1);
  }
  return ops::logits(pick(hidden_ND, rows), model_.weights().lm_head);
}

// The next token of each; then one more of those whose draft it was.
void Engine::Loop::sample(std::vector<Part*> ready, const at::Tensor& logits_NV) {
  while (!ready.empty()) {
    std::vector<Drawn> drawn(ready.size());
    parallel_for(int64_t(ready.size()), [&](int64_t i) {
      const Sequence& sequence = *ready[i]->sequence;
      auto row = row_of(logits_NV, ready[i]->logits_row);
      float lse = ops::log_sum_exp(row.data(), int64_t(row.size()));
      if (!std::isfinite(lse)) return;
      Draw of = draw(row, sequence.request.sampling, sequence.counts, sequence.tokens.size(), allowed_next(sequence));
      float kept = kept_log_prob_of(row, of, sequence.request.sampling, lse);
      drawn[i] = {{of.token, row[of.token] - lse, kept, {}, std::move(of.kept)}, /*finite=*/true};
      for (int32_t id : most_likely(row, sequence.request.top_log_probs)) drawn[i].token.top.push_back({id, row[id] - lse});
    });
    std::vector<Part*> right;
    for (size_t i = 0; i < ready.size(); ++i)
      if (take(*ready[i], std::move(drawn[i]))) right.push_back(ready[i]);
    ready = std::move(right);
  }
}

// True: the draft's row holds, for it is the token's own, and the text goes on: the next token is to be drawn from it. Otherwise
// the row is forgotten: its slot is the next step's.
bool Engine::Loop::take(Part& part, Drawn drawn) {
  Sequence& sequence = *part.sequence;
  if (!drawn.finite) {
    part.sequence = nullptr;
    finish(remove(sequence), Finish::failed, "[engine] expected finite logits, got NaN or infinity");
    return false;
  }
  bool right = sequence.draft == drawn.token.id;
  if (sequence.draft) ++now_.drafted, now_.accepted += right;
  sequence.draft.reset();
  if (!accept(sequence, std::move(drawn.token))) {
    part.sequence = nullptr;
    return false;
  }
  if (!right || cancelled(sequence.id)) return false;
  ++sequence.computed, ++part.rows, ++part.logits_row;
  return true;
}

// False: the text has ended.
bool Engine::Loop::accept(Sequence& sequence, Token token) {
  const Request& request = sequence.request;
  sequence.tokens.push_back(token.id);
  if (request.sampling.penalises()) sequence.counts.add(token.id, /*generated=*/true);
  ++now_.generated_tokens;
  sequence.on_event(
      {.request = sequence.id, .token = &token, .finish = nullptr, .error = "", .cached_tokens = sequence.cached_tokens});
  bool stops = std::find(request.stop_tokens.begin(), request.stop_tokens.end(), token.id) != request.stop_tokens.end();
  if (request.constraint && !stops) {
    sequence.constrained = request.constraint->advance(sequence.constrained, token.id);
    stops = request.stop_tokens.empty() && request.constraint->complete(sequence.constrained);
  }
  bool full = sequence.generated() >= request.max_tokens || int64_t(sequence.tokens.size()) >= max_context_;
  if (stops || full) finish(remove(sequence), stops ? Finish::stop : Finish::length);
  return !stops && !full;
}

// A right draft brings two tokens; who may have but one more needs none.
bool Engine::Loop::wants_draft(const Sequence& sequence) const {
  return sequence.missing() == 1 && sequence.generated() + 2 <= sequence.request.max_tokens &&
         int64_t(sequence.tokens.size()) + 2 <= max_context_;
}

// The MTP layer over the rows that hold, all of whose next tokens are known by now. A draft is what the sampler would draw were
// the MTP layer the model, with the very noise of the draw it is to foresee: so it is hit as often as can be.
void Engine::Loop::draft(const std::vector<Part>& parts, const at::Tensor& hidden_ND) {
  Rows rows;
  std::vector<int32_t> next;
  std::vector<int64_t> hidden_rows, last_rows;
  std::vector<Sequence*> drafting;
  for (const auto& part : parts) {
    Sequence& sequence = *part.sequence;
    int64_t first = sequence.computed - part.rows;
    rows.add(sequence, first, part.rows, std::nullopt);
    for (int64_t i = 0; i < part.rows; ++i)
      next.push_back(sequence.tokens[first + i + 1]), hidden_rows.push_back(part.first_row + i);
    if (wants_draft(sequence)) drafting.push_back(&sequence), last_rows.push_back(rows.count() - 1);
  }
  auto batch = rows.batch();
  batch.next_N = at::from_blob(next.data(), {int64_t(next.size())}, at::kInt);
  auto mtp_ND = model_.forward_mtp(batch, pick(hidden_ND, hidden_rows), {.attention = attention(), .type = type()}, &cache_);
  if (drafting.empty()) return;
  auto logits_NV = ops::logits(pick(mtp_ND, last_rows), model_.weights().mtp->head);
  parallel_for(int64_t(drafting.size()), [&](int64_t i) {
    Sequence& sequence = *drafting[i];
    auto row = row_of(logits_NV, i);
    if (!std::isfinite(ops::log_sum_exp(row.data(), int64_t(row.size())))) return;
    sequence.draft = draw(row, sequence.request.sampling, sequence.counts, sequence.tokens.size(), allowed_next(sequence)).token;
  });
}

}  // namespace fulgur
