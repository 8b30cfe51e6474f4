#include "fulgur/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"

namespace fulgur {
namespace {

// Uniform in (0, 1), a function of (seed, position, token).
class Noise {
 public:
  Noise(uint64_t seed, uint64_t position)
      : key_(mix(mix(seed + 0x9e3779b97f4a7c15ull) + (position + 1) * 0xd1342543de82ef95ull)) {}
  double operator()(int32_t token) const {
    return (double(mix(key_ + uint64_t(token + 1) * 0x9e3779b97f4a7c15ull) >> 12) + 0.5) * 0x1p-52;
  }

 private:
  uint64_t key_;
};

// Token ids, the likeliest first, as many as are asked for: a heap, because few are.
class ByLikelihood {
 public:
  explicit ByLikelihood(std::span<const float> logits) : less_{logits}, rest_(logits.size()) {
    std::iota(rest_.begin(), rest_.end(), 0);
    std::make_heap(rest_.begin(), rest_.end(), less_);
  }
  int32_t next() {
    std::pop_heap(rest_.begin(), rest_.end(), less_);
    int32_t token = rest_.back();
    rest_.pop_back();
    return token;
  }

 private:
  struct Less {
    std::span<const float> logits;
    bool operator()(int32_t a, int32_t b) const { return logits[a] < logits[b] || (logits[a] == logits[b] && a > b); }
  };
  Less less_;
  std::vector<int32_t> rest_;
};

// What top-k, top-p and min-p leave, ascending; empty: everything.
std::vector<int32_t> keep(const Sampling& s, std::span<const float> logits, std::span<const double> weight, bool constrained) {
  int64_t V = int64_t(logits.size()), most = s.top_k > 0 ? std::min(s.top_k, V) : V, count = 0;
  std::vector<int32_t> kept;
  if (most == V && s.top_p >= 1 && s.min_p <= 0) {
    for (int32_t token = 0; token < int32_t(V) && constrained; ++token)
      if (logits[token] > -INFINITY) kept.push_back(token);
    return kept;
  }
  ByLikelihood order(logits);
  double total = 0, held = 0;
  if (most == V) total = std::accumulate(weight.begin(), weight.end(), 0.0);
  else
    while (int64_t(kept.size()) < most) kept.push_back(order.next()), total += weight[kept.back()];
  for (; count < most; ++count) {
    if (count == int64_t(kept.size())) kept.push_back(order.next());
    double next = weight[kept[count]];
    if (logits[kept[count]] == -INFINITY) break;
    if (count > 0 && ((s.top_p < 1 && held >= s.top_p * total) || next < s.min_p * weight[kept[0]])) break;
    held += next;
  }
  kept.resize(count);
  std::sort(kept.begin(), kept.end());
  return kept;
}

// argmax of logit / T + Gumbel noise, which draws from the softmax. The noise -log(-log u) exceeds x only where 1 - u < e^-x, so
// most tokens are out of the race before a logarithm is taken.
int32_t race(std::span<const float> logits, std::span<const double> weight, float top, const Sampling& s,
             const std::vector<int32_t>& kept, uint64_t position) {
  Noise noise(s.seed, position);
  double best = -INFINITY, room = INFINITY;  // room: e^(top - best), both divided by T
  int32_t winner = -1;
  auto enter = [&](int32_t token) {
    double u = noise(token);
    if (winner >= 0 && 1 - u >= weight[token] * room) return;
    double score = double(logits[token] - top) / s.temperature - std::log(-std::log(u));
    if (score <= best && winner >= 0) return;
    best = score, winner = token, room = std::exp(-best) * (1 + 1e-9);
  };
  if (kept.empty())
    for (int32_t token = 0; token < int32_t(logits.size()); ++token) enter(token);
  else
    for (int32_t token : kept) enter(token);
  return winner;
}

}  // namespace

void validate(const Sampling& s, int64_t vocab_size) {
  auto number = [](const char* name, double value, double least, double most, const char* range) {
    FULGUR_CHECK(value >= least && value <= most, "[sampling] ", name, ": expected ", range, ", got ", value);
  };
  number("temperature", s.temperature, 0, 1e6, "a number from 0");
  FULGUR_CHECK(s.top_k >= 0, "[sampling] top_k: expected 0 (all) or more, got ", s.top_k);
  FULGUR_CHECK(s.top_p > 0 && s.top_p <= 1, "[sampling] top_p: expected a number above 0, at most 1, got ", s.top_p);
  number("min_p", s.min_p, 0, 1, "a number from 0 to 1");
  FULGUR_CHECK(s.repetition_penalty > 0 && std::isfinite(s.repetition_penalty),
               "[sampling] repetition_penalty: expected a number above 0, got ", s.repetition_penalty);
  number("presence_penalty", s.presence_penalty, -1e6, 1e6, "a finite number");
  number("frequency_penalty", s.frequency_penalty, -1e6, 1e6, "a finite number");
  for (auto [token, bias] : s.logit_bias) {
    FULGUR_CHECK(token >= 0 && token < vocab_size, "[sampling] logit_bias: expected token ids below ", vocab_size, ", got ",
                 token);
    FULGUR_CHECK(!std::isnan(bias), "[sampling] logit_bias: expected numbers, got NaN for token ", token);
  }
}

void TokenCounts::add(int32_t token, bool generated) { count_[token] += generated; }

void penalise(const Sampling& s, const TokenCounts& counts, std::vector<float>& logits) {
  for (auto [token, count] : counts.count_) {
    double logit = logits[token];
    logit = logit > 0 ? logit / s.repetition_penalty : logit * s.repetition_penalty;
    if (count > 0) logit -= s.presence_penalty + s.frequency_penalty * double(count);
    logits[token] = float(logit);
  }
}

Draw draw(std::span<const float> given, const Sampling& s, const TokenCounts& counts, uint64_t position,
          std::span<const uint64_t> allowed) {
  std::vector<float> changed;
  auto logits = given;
  if (s.penalises() || !s.logit_bias.empty() || !allowed.empty()) {
    changed.assign(given.begin(), given.end());
    if (s.penalises()) penalise(s, counts, changed);
    for (auto [token, bias] : s.logit_bias) changed[token] = float(changed[token] + bias);
    for (size_t token = 0; token < changed.size() && !allowed.empty(); ++token)
      if (token / 64 >= allowed.size() || !(allowed[token / 64] >> token % 64 & 1)) changed[token] = -INFINITY;
    logits = changed;
  }
  int32_t best = int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (s.temperature == 0) return {best, {}};
  float top = logits[best];
  std::vector<double> weight(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) weight[i] = std::exp(double(logits[i] - top) / s.temperature);
  Draw result;
  result.kept = keep(s, logits, weight, !allowed.empty());
  result.token = race(logits, weight, top, s, result.kept, position);
  return result;
}

std::vector<int32_t> most_likely(std::span<const float> logits, int64_t count) {
  ByLikelihood order(logits);
  std::vector<int32_t> out(std::min(count, int64_t(logits.size())));
  for (int32_t& token : out) token = order.next();
  return out;
}

}  // namespace fulgur
