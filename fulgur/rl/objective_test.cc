// The objective against golden values, against autograd of a plain ATen formulation, and what each stabiliser promises.
#include "fulgur/rl/objective.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/rl/estimators.h"

namespace fulgur {
namespace {

std::vector<float> floats(const at::Tensor& t) {
  auto x = t.to(at::kFloat).contiguous();
  return {x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel()};
}

double close(const std::vector<float>& got, const std::vector<float>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < got.size(); ++i)
    worst = std::max(worst, std::fabs(double(got[i]) - expected[i])), largest = std::max(largest, std::fabs(double(expected[i])));
  return worst / largest;
}

// The golden batch: 12 sequences of up to 12 tokens, of which `mask` are real.
struct Golden {
  std::map<std::string, at::Tensor> t = read_safetensors(std::filesystem::path(FULGUR_GOLDEN) / "model/vectors/grpo.safetensors");
  at::Tensor real = t.at("mask") != 0;
  std::vector<float> now = floats(t.at("logp_new").index({real})), old = floats(t.at("logp_old").index({real})),
                     reference = floats(t.at("logp_ref").index({real}));
  std::vector<int64_t> counts;
  std::vector<double> advantage, weight;
  ObjectiveConfig config;

  Golden() {
    for (int64_t i = 0; i < 12; ++i) {
      counts.push_back(real[i].sum().item<int64_t>());
      advantage.push_back(t.at("advantage")[i].item<float>());
      weight.push_back(1.0 / double(12 * counts.back()));
    }
    config.clip_low = config.clip_high = t.at("eps").item<float>();
    config.kl_coefficient = t.at("beta").item<float>();
    config.off_policy_delta = t.at("delta").item<float>();
  }
  SampledTokens tokens() const { return {now, old, reference, {}, counts, advantage, weight}; }
  std::vector<float> real_of(const std::string& name) const { return floats(t.at(name).index({real})); }
};

TEST(Objective, EqualsTheGoldenValues) {
  Golden g;
  auto got = objective(g.config, g.tokens());
  EXPECT_NEAR(-got.loss, g.t.at("objective").item<float>(), 2e-6);
  EXPECT_LT(close(got.gradient,
                  [&] {
                    auto expected = g.real_of("grad_logp_new");
                    for (float& x : expected) x = -x;
                    return expected;
                  }()),
            2e-5);
  int64_t dropped = (g.t.at("keep") == 0).sum().item<int64_t>();
  EXPECT_GT(dropped, 0);
  EXPECT_EQ(got.masked_members, double(dropped));
}

TEST(Objective, AdvantagesEqualTheGoldenValues) {
  Golden g;
  std::vector<std::optional<double>> rewards;
  std::vector<int64_t> groups;
  for (int64_t i = 0; i < 12; ++i) {
    rewards.push_back(g.t.at("rewards")[i].item<float>());
    groups.push_back(g.t.at("group")[i].item<int>());
  }
  auto got = advantages(rewards, groups, /*divide_by_std=*/false, /*drop_equal=*/false);
  for (int64_t i = 0; i < 12; ++i) EXPECT_NEAR(got[i].value(), g.t.at("advantage")[i].item<float>(), 1e-6);
}

TEST(Objective, UnbiasedKlHasTheGoldenGradient) {
  Golden g;
  g.config.kl_coefficient = 1;
  std::vector<double> nothing(12, 0.0), ones(12, 1.0);
  auto got = objective(g.config, {g.now, g.old, g.reference, {}, g.counts, nothing, ones});
  EXPECT_LT(close(got.gradient, g.real_of("grad_kl_logp_new")), 2e-5);
  double sum = 0;
  for (float kl : g.real_of("kl")) sum += kl;
  EXPECT_NEAR(got.loss, sum, 1e-4);
}

std::vector<double> doubles(const at::Tensor& t) {
  auto x = t.to(at::kDouble).contiguous();
  return {x.const_data_ptr<double>(), x.const_data_ptr<double>() + x.numel()};
}

TEST(Objective, TheUnbiasedKlIsTheExactGradientOnAverageAndTheOthersAreNot) {
  Golden g;
  auto logits = doubles(g.t.at("softmax.logits_new")), old = doubles(g.t.at("softmax.logits_old")),
       reference = doubles(g.t.at("softmax.logits_ref")), golden = doubles(g.t.at("softmax.kl_grad"));
  auto exact = exact_kl_gradient(logits, reference);
  auto distance = [&](const std::vector<double>& x) {
    double most = 0;
    for (size_t i = 0; i < golden.size(); ++i) most = std::max(most, std::fabs(x[i] - golden[i]));
    return most;
  };
  EXPECT_LT(distance(exact), 1e-7);
  EXPECT_LT(distance(estimated_kl_gradient("unbiased", logits, old, reference).mean), 1e-6);
  for (std::string biased : {"k1", "k2", "k3"})
    EXPECT_GT(distance(estimated_kl_gradient(biased, logits, old, reference).mean), 0.01) << biased;
  // Drawn from pi_theta itself, k2 is exact too, and k1 has no gradient at all.
  EXPECT_LT(distance(estimated_kl_gradient("k2", logits, logits, reference).mean), 1e-6);
  for (double slope : estimated_kl_gradient("k1", logits, logits, reference).mean) EXPECT_NEAR(slope, 0, 1e-7);
}

// A plain formulation, for autograd.
at::Tensor plain_loss(const ObjectiveConfig& c, const at::Tensor& now, const at::Tensor& old, const at::Tensor& reference,
                      const at::Tensor& proximal, const std::vector<int64_t>& counts, const std::vector<double>& advantage,
                      const std::vector<double>& weight) {
  std::vector<at::Tensor> terms;
  int64_t first = 0;
  for (size_t m = 0; m < counts.size(); ++m) {
    auto of = [&](const at::Tensor& t) { return t.narrow(0, first, counts[m]); };
    auto x = of(now), base = c.correction == "none" ? of(old) : of(proximal);
    auto r = (x - base).exp(), r_old = (x - of(old)).exp(), stale = (of(proximal) - of(old)).exp();
    auto surrogate = at::minimum(r * advantage[m], r.clamp(1 - c.clip_low, 1 + c.clip_high) * advantage[m]);
    if (c.correction == "tis") surrogate = surrogate * stale.clamp_max(c.correction_high);
    if (c.correction == "icepop")
      surrogate = surrogate * at::where((stale < c.correction_low) | (stale > c.correction_high), at::zeros_like(stale), stale);
    double geometric = (of(proximal) - of(old)).mean().exp().item<double>();
    if (c.correction == "geometric" && (geometric < c.correction_low || geometric > c.correction_high)) surrogate = surrogate * 0;
    bool off = (of(old) - x.detach()).mean().item<double>() > c.off_policy_delta;
    if (c.off_policy_delta > 0 && advantage[m] < 0 && off) surrogate = surrogate * 0;
    auto log_rho = of(reference) - x, k3 = log_rho.exp() - log_rho - 1;
    auto kl = c.kl == "k1" ? -log_rho : c.kl == "k2" ? log_rho.square() / 2 : c.kl == "k3" ? k3 : r_old * k3;
    terms.push_back(((surrogate - c.kl_coefficient * kl) * weight[m]).sum());
    first += counts[m];
  }
  return -at::stack(terms).sum();
}

TEST(Objective, GradientsAreThoseOfAutogradInEveryForm) {
  at::manual_seed(1);
  std::vector<int64_t> counts;
  std::vector<double> advantage, weight;
  int64_t n = 0;
  for (int64_t m = 0; m < 40; ++m) {
    counts.push_back(1 + m % 17), advantage.push_back(m % 5 == 0 ? 0 : std::sin(double(m)) * 2),
        weight.push_back(0.1 + 0.01 * double(m));
    n += counts.back();
  }
  auto now = (-at::rand({n}) * 3).requires_grad_(), old = now.detach() + at::randn({n}) * 0.3,
       reference = now.detach() + at::randn({n}) * 0.5, proximal = now.detach() + at::randn({n}) * 0.2;
  auto a = floats(now), b = floats(old), c = floats(reference), d = floats(proximal);
  int64_t masked = 0, rejected = 0, clipped = 0;
  for (std::string correction : {"none", "tis", "icepop", "geometric"})
    for (std::string kl : {"unbiased", "k1", "k2", "k3"})
      for (double delta : {0.0, 0.05}) {
        ObjectiveConfig config{.clip_low = 0.1,
                               .clip_high = 0.3,
                               .kl_coefficient = 0.2,
                               .kl = kl,
                               .off_policy_delta = delta,
                               .correction = correction,
                               .correction_low = 0.9,
                               .correction_high = 1.2};
        auto expected = plain_loss(config, now, old, reference, proximal, counts, advantage, weight);
        auto gradient = [&] {
          now.mutable_grad() = at::Tensor();
          expected.backward();
          return now.grad();
        }();
        auto got = objective(config, {a, b, c, d, counts, advantage, weight});
        EXPECT_NEAR(got.loss, expected.item<double>(), 1e-5 * std::fabs(expected.item<double>())) << correction << kl << delta;
        EXPECT_LT(close(got.gradient, floats(gradient)), 2e-6) << correction << kl << delta;
        masked += int64_t(got.masked_members), rejected += int64_t(got.rejected_tokens), clipped += int64_t(got.clipped_tokens);
      }
  for (int64_t count : {masked, rejected, clipped}) EXPECT_GT(count, 0);
}

// Published rows of TRL's test: log-ratio 2 with A > 0 keeps, .5 with A < 0 keeps, 2 with A < 0 drops at delta 1.
TEST(Objective, TheMaskDropsNegativeMembersThatHaveDriftedAndNoOthers) {
  std::vector<float> now{-3, -3, -1, -3}, old{-1, -1, -.5, -1};
  std::vector<int64_t> counts{1, 1, 1, 1};
  std::vector<double> advantage{1, -1, -1, -1}, weight(4, 1);
  ObjectiveConfig config{.clip_low = 1, .clip_high = 100, .off_policy_delta = 1};
  auto got = objective(config, {now, old, {}, {}, counts, advantage, weight});
  std::vector<bool> has_slope;
  for (float slope : got.gradient) has_slope.push_back(slope != 0);
  EXPECT_EQ(has_slope, (std::vector<bool>{true, false, true, false}));
  EXPECT_EQ(got.masked_members, 2);
  EXPECT_EQ(got.negative_members, 3);
  // Its KL stays.
  std::vector<float> reference{-2, -2, -2, -2};
  config.kl_coefficient = 0.1;
  EXPECT_NE(objective(config, {now, old, reference, {}, counts, advantage, weight}).gradient[1], 0);
}

TEST(Objective, OnPolicyItIsThePolicyGradient) {
  std::vector<float> now{-1, -2, -3, -.5};
  std::vector<int64_t> counts{3, 1};
  std::vector<double> advantage{.5, -.25}, weight{1.0 / 6, 1.0 / 2};
  auto got = objective({.off_policy_delta = 1e-9}, {now, now, {}, {}, counts, advantage, weight});
  EXPECT_EQ(got.gradient, (std::vector<float>{float(-.5 / 6), float(-.5 / 6), float(-.5 / 6), .125f}));
  EXPECT_EQ(got.clipped_tokens + got.masked_members, 0);
  EXPECT_EQ(got.ratio, 4);
}

TEST(Advantages, InvalidMembersLeaveTheirGroupAndLoneOnesAreDropped) {
  std::vector<std::optional<double>> rewards{1, 0, std::nullopt, 1, std::nullopt, 0.5, 0.5};
  std::vector<int64_t> groups{0, 0, 0, 1, 1, 2, 2};
  auto got = advantages(rewards, groups, false, false);
  EXPECT_EQ(got, (std::vector<std::optional<double>>{0.5, -0.5, {}, {}, {}, 0.0, 0.0}));
  auto dropped = advantages(rewards, groups, false, true);
  EXPECT_EQ(dropped, (std::vector<std::optional<double>>{0.5, -0.5, {}, {}, {}, {}, {}}));
  auto scaled = advantages(rewards, groups, true, false);
  EXPECT_NEAR(*scaled[0], 1, 1e-5);
  EXPECT_NEAR(*scaled[1], -1, 1e-5);
}

TEST(Objective, ImpossibleNumbersAreNamed) {
  auto says = [](ObjectiveConfig c) {
    try {
      validate(c);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(says({}), "");
  EXPECT_NE(says({.kl = "k4"}).find("[rl] kl: expected one of unbiased, k1, k2, k3, got k4"), std::string::npos);
  EXPECT_NE(says({.clip_low = 1.5}).find("clip_low"), std::string::npos);
  EXPECT_NE(says({.kl_coefficient = NAN}).find("kl_coefficient"), std::string::npos);
  EXPECT_NE(says({.correction_low = 2, .correction_high = 1}).find("correction_high"), std::string::npos);
}

}  // namespace
}  // namespace fulgur
