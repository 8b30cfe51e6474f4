#include "fulgur/engine/sampler.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

Draw draw_at(const std::vector<float>& logits, const Sampling& sampling, uint64_t position) {
  return draw(logits, sampling, {}, position);
}

std::vector<float> some_logits(int64_t size) {
  std::vector<float> logits(size);
  for (int64_t i = 0; i < size; ++i) logits[i] = float(3 * std::sin(double(i * i + 1)));
  return logits;
}

// Probabilities a draw should have: a full sort, by hand.
std::vector<double> expected(const std::vector<float>& logits, const Sampling& s) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  std::vector<double> p(logits.size());
  for (size_t i = 0; i < p.size(); ++i) p[i] = std::exp(logits[i] / s.temperature);
  auto normalise = [&] {
    double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= total;
  };
  if (s.top_k > 0)
    for (size_t i = s.top_k; i < order.size(); ++i) p[order[i]] = 0;
  normalise();
  double before = 0;
  for (int token : order) {
    double own = p[token];
    if (before >= s.top_p) p[token] = 0;
    before += own;
  }
  double most = p[order[0]];
  for (double& x : p)
    if (x < s.min_p * most) x = 0;
  normalise();
  return p;
}

// How often each token came in n draws.
std::vector<int> draws_of(const std::vector<float>& logits, const Sampling& s, int n) {
  std::vector<int> seen(logits.size());
  for (int i = 0; i < n; ++i) ++seen[draw_at(logits, s, i).token];
  return seen;
}

// By how many standard deviations their chi-squared is above its mean; what has no probability must never have come.
double deviation(const std::vector<float>& logits, const Sampling& s, const std::vector<int>& seen) {
  auto p = expected(logits, s);
  int n = std::accumulate(seen.begin(), seen.end(), 0), cells = -1;
  double sum = 0, rest = 0, rest_seen = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    EXPECT_TRUE(p[i] > 0 || seen[i] == 0) << i;
    if (p[i] * n < 10) rest += p[i] * n, rest_seen += seen[i];
    else sum += std::pow(seen[i] - p[i] * n, 2) / (p[i] * n), ++cells;
  }
  if (rest >= 10) sum += std::pow(rest_seen - rest, 2) / rest, ++cells;
  return (sum - cells) / std::sqrt(2.0 * std::max(1, cells));
}

TEST(Sampler, DrawsFromTheSoftmaxAndWhatTheFiltersLeaveOfIt) {
  auto logits = some_logits(60);
  for (const Sampling& s : {Sampling{}, Sampling{.temperature = 0.5}, Sampling{.temperature = 2}, Sampling{.top_k = 7},
                            Sampling{.top_p = 0.8}, Sampling{.min_p = 0.2}, Sampling{.top_k = 30, .top_p = 0.9, .min_p = 0.05}})
    EXPECT_LT(deviation(logits, s, draws_of(logits, s, 20000)), 3.5)
        << s.temperature << " " << s.top_k << " " << s.top_p << " " << s.min_p;
  // The measure tells distributions apart: these draws are of another temperature.
  auto flatter = logits;
  for (float& logit : flatter) logit *= 0.9f;
  EXPECT_GT(deviation(logits, {}, draws_of(flatter, {}, 20000)), 10);
}

TEST(Sampler, SaysWhatItChoseAmong) {
  auto logits = some_logits(60);
  EXPECT_TRUE(draw_at(logits, {}, 0).kept.empty());
  for (const Sampling& s : {Sampling{.top_k = 7}, Sampling{.top_p = 0.8}, Sampling{.top_k = 30, .top_p = 0.9, .min_p = 0.05}}) {
    auto p = expected(logits, s);
    std::vector<int32_t> kept;
    for (size_t i = 0; i < p.size(); ++i)
      if (p[i] > 0) kept.push_back(int32_t(i));
    EXPECT_EQ(draw_at(logits, s, 3).kept, kept);
  }
}

TEST(Sampler, ASeedAndAPositionDecide) {
  auto logits = some_logits(60);
  std::vector<int32_t> one, two, other;
  for (int i = 0; i < 50; ++i) {
    one.push_back(draw_at(logits, {.seed = 1}, i).token);
    two.push_back(draw_at(logits, {.seed = 1}, i).token);
    other.push_back(draw_at(logits, {.seed = 2}, i).token);
  }
  EXPECT_EQ(one, two);
  EXPECT_NE(one, other);
}

TEST(Sampler, ZeroTemperatureTakesTheLargestAndOfEqualOnesTheFirst) {
  EXPECT_EQ(draw_at({1, 5, 5, 2}, {.temperature = 0}, 9).token, 1);
  EXPECT_EQ(draw_at({1, 5, 4, 2}, {.temperature = 1e-40, .top_p = 0.9}, 9).kept, std::vector<int32_t>{1}) << "nearly zero";
  EXPECT_EQ(most_likely(std::vector<float>{1, 5, 5, 2}, 3), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(most_likely(std::vector<float>{1, 5}, 9).size(), 2u);
}

TEST(Sampler, PenaltiesAndBiasActOnTheTokensTheyName) {
  std::vector<float> logits{2, 2, 2, -1};
  TokenCounts counts;
  counts.add(0, true), counts.add(0, true), counts.add(1, false), counts.add(3, false);
  auto best = [&](Sampling s) { return s.temperature = 0, draw(logits, s, counts, 0).token; };
  EXPECT_EQ(best({}), 0);
  EXPECT_EQ(best({.presence_penalty = 0.5}), 1);  // generated ones alone
  EXPECT_EQ(best({.frequency_penalty = 0.5}), 1);
  EXPECT_EQ(best({.repetition_penalty = 1.5}), 2);  // the prompt's too
  EXPECT_EQ(best({.logit_bias = {{3, 3.5}}}), 3);
  EXPECT_EQ(best({.logit_bias = {{0, -100}, {1, -100}}}), 2);
  EXPECT_EQ(draw(logits, {.logit_bias = {{0, -INFINITY}, {1, -INFINITY}, {2, -INFINITY}}}, counts, 5).token, 3);
}

TEST(Sampler, ImpossibleSettingsAreNamed) {
  auto message = [](const Sampling& s) -> std::string {
    try {
      validate(s, 100);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_NE(message({.temperature = -1}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.temperature = NAN}).find("temperature"), std::string::npos);
  EXPECT_NE(message({.top_k = -1}).find("top_k"), std::string::npos);
  EXPECT_NE(message({.top_p = 0}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.top_p = 1.5}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.min_p = 2}).find("min_p"), std::string::npos);
  EXPECT_NE(message({.repetition_penalty = 0}).find("repetition_penalty"), std::string::npos);
  EXPECT_NE(message({.presence_penalty = NAN}).find("presence_penalty"), std::string::npos);
  EXPECT_NE(message({.logit_bias = {{100, 1}}}).find("logit_bias"), std::string::npos);
}

// The shortcut that spares logarithms never changes the winner.
RC_GTEST_PROP(Sampler, TheRaceIsWonByTheLargestSumOfLogitAndNoise, (uint64_t seed)) {
  auto logits = *rc::gen::container<std::vector<float>>(
      300, rc::gen::map(rc::gen::inRange(-900, 900), [](int x) { return float(x) / 100; }));
  const auto cold = *rc::gen::inRange(1, 30);
  Sampling s{.temperature = cold / 10.0, .seed = seed};
  int32_t token = draw_at(logits, s, 4).token;
  // One token less can only make another win if it was the winner.
  for (int32_t banned : {0, 7, 299}) {
    if (banned == token) continue;
    auto without = s;
    without.logit_bias = {{banned, -INFINITY}};
    RC_ASSERT(draw_at(logits, without, 4).token == token);
  }
}

}  // namespace
}  // namespace fulgur
