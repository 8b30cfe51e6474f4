#include "fulgur/engine/sampler.h"

#include <algorithm>
#include <bit>
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

// The larger logit first, of equal ones the smaller index.
struct Likelier {
  std::span<const float> logits;
  bool operator()(int32_t a, int32_t b) const { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); }
};

// What a draw chooses among: tokens that are allowed, ascending, by their index here.
struct Candidates {
  std::vector<int32_t> ids;  // empty: index and token are the same
  std::vector<float> logits;

  int32_t token(int32_t index) const { return ids.empty() ? index : ids[index]; }
};

Candidates candidates(std::span<const float> logits, std::span<const uint64_t> allowed) {
  Candidates c;
  if (allowed.empty()) return c.logits.assign(logits.begin(), logits.end()), c;
  for (size_t word = 0; word < allowed.size(); ++word)
    for (uint64_t bits = allowed[word]; bits != 0; bits &= bits - 1)
      if (size_t token = word * 64 + std::countr_zero(bits); token < logits.size()) c.ids.push_back(int32_t(token));
  for (int32_t token : c.ids) c.logits.push_back(logits[token]);
  return c;
}

// How many of `order` are the fewest likeliest that hold `share` of the weight of all; they come first, in any order.
// Quickselect: a full sort of a large vocabulary would take longer than the model.
size_t fewest(std::vector<int32_t>& order, const Likelier& likelier, const std::vector<float>& weight, double share) {
  auto sum = [&](size_t first, size_t last) {
    double total = 0;
    for (size_t i = first; i < last; ++i) total += weight[order[i]];
    return total;
  };
  double wanted = share * sum(0, order.size());
  size_t first = 0, last = order.size();  // the last one kept lies between
  for (double held = 0; last - first > 1;) {
    size_t middle = first + (last - first) / 2;
    std::nth_element(order.begin() + first, order.begin() + middle, order.begin() + last, likelier);
    double half = sum(first, middle);
    if (held + half >= wanted) last = middle;
    else held += half, first = middle;
  }
  return last;
}

// What top-k, top-p and min-p leave, indices ascending.
std::vector<int32_t> keep(const Sampling& s, const std::vector<float>& logits, const std::vector<float>& weight) {
  std::vector<int32_t> order;
  for (int32_t i = 0; i < int32_t(logits.size()); ++i)
    if (logits[i] > -INFINITY) order.push_back(i);
  Likelier likelier{logits};
  if (s.top_k > 0 && s.top_k < int64_t(order.size())) {
    std::nth_element(order.begin(), order.begin() + s.top_k, order.end(), likelier);
    order.resize(s.top_k);
  }
  if (s.top_p < 1) order.resize(fewest(order, likelier, weight, s.top_p));
  std::erase_if(order, [&](int32_t i) { return weight[i] < s.min_p; });  // the likeliest one's weight is 1
  std::sort(order.begin(), order.end());
  return order;
}

// argmax of logit / T + Gumbel noise, which draws from the softmax. The noise -log(-log u) exceeds x only where 1 - u < e^-x, so
// most tokens are out of the race before a logarithm is taken.
int32_t race(const Candidates& c, const std::vector<float>& weight, float top, const Sampling& s,
             const std::vector<int32_t>* kept, uint64_t position) {
  Noise noise(s.seed, position);
  double best = -INFINITY, room = INFINITY;  // room: e^(top - best), both divided by T
  int32_t winner = -1;
  auto enter = [&](int32_t i) {
    double u = noise(c.token(i));
    if (winner >= 0 && 1 - u >= weight[i] * room) return;
    double score = double(c.logits[i] - top) / s.temperature - std::log(-std::log(u));
    if (score <= best && winner >= 0) return;
    best = score, winner = i, room = std::exp(-best) * (1 + 1e-5);  // weights are rounded
  };
  if (kept)
    for (int32_t i : *kept) enter(i);
  else
    for (int32_t i = 0; i < int32_t(c.logits.size()); ++i) enter(i);
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

Draw draw(std::span<const float> logits, const Sampling& s, const TokenCounts& counts, uint64_t position,
          std::span<const uint64_t> allowed) {
  std::vector<float> changed;
  if (s.penalises() || !s.logit_bias.empty()) {
    changed.assign(logits.begin(), logits.end());
    if (s.penalises()) penalise(s, counts, changed);
    for (auto [token, bias] : s.logit_bias) changed[token] = float(changed[token] + bias);
    logits = changed;
  }
  Candidates c = candidates(logits, allowed);
  int32_t best = int32_t(std::max_element(c.logits.begin(), c.logits.end()) - c.logits.begin());
  if (s.temperature == 0) return {c.token(best), {}};
  float top = c.logits[best];
  std::vector<float> weight(c.logits.size());
  for (size_t i = 0; i < weight.size(); ++i) weight[i] = std::exp(float(double(c.logits[i] - top) / s.temperature));
  bool filters = s.top_k > 0 || s.top_p < 1 || s.min_p > 0;
  Draw result;
  if (filters) result.kept = keep(s, c.logits, weight);
  result.token = c.token(race(c, weight, top, s, filters ? &result.kept : nullptr, position));
  if (filters)
    for (int32_t& kept : result.kept) kept = c.token(kept);
  else result.kept = std::move(c.ids);
  return result;
}

std::vector<int32_t> most_likely(std::span<const float> logits, int64_t count) {
  if (count == 0) return {};  // the usual case, and a vocabulary is large
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  count = std::min(count, int64_t(order.size()));
  std::partial_sort(order.begin(), order.begin() + count, order.end(), Likelier{logits});
  order.resize(count);
  return order;
}

}  // namespace fulgur
