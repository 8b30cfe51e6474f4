#include "fulgur/rl/objective.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

double mean_difference(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += double(a[i]) - b[i];
  return a.empty() ? 0 : sum / double(a.size());
}

struct Term {
  double value = 0, slope = 0;
};

// min(r A, clip(r) A); the clipped branch is flat.
Term surrogate(double ratio, double advantage, const ObjectiveConfig& c) {
  double clipped = std::clamp(ratio, 1 - c.clip_low, 1 + c.clip_high);
  if (clipped * advantage < ratio * advantage) return {clipped * advantage, 0};
  return {ratio * advantage, ratio * advantage};
}

// u = log(pi_theta / pi_ref), r = pi_theta / pi_old; slopes by log pi_theta.
Term divergence(const std::string& kind, double u, double r) {
  double rho = std::exp(-u), k3 = rho + u - 1;
  if (kind == "k1") return {u, 1};
  if (kind == "k2") return {u * u / 2, u};
  if (kind == "k3") return {k3, 1 - rho};
  return {r * k3, r * u};
}

// What becomes of a member's surrogates.
struct Treatment {
  bool masked = false, rejected = false;
};

}  // namespace

void validate(const ObjectiveConfig& c) {
  auto is = [](const char* key, const std::string& value, std::initializer_list<const char*> allowed) {
    for (const char* name : allowed)
      if (value == name) return;
    std::string names;
    for (const char* name : allowed) names += names.empty() ? name : cat(", ", name);
    throw InputError(cat("[rl] ", key, ": expected one of ", names, ", got ", value));
  };
  auto at_least = [](const char* key, double value, double least) {
    FULGUR_CHECK(std::isfinite(value) && value >= least, "[rl] ", key, ": expected ", least, " or more, got ", value);
  };
  is("kl", c.kl, {"unbiased", "k1", "k2", "k3"});
  is("correction", c.correction, {"none", "tis", "icepop", "geometric"});
  at_least("clip_low", c.clip_low, 0), at_least("clip_high", c.clip_high, 0), at_least("kl_coefficient", c.kl_coefficient, 0);
  at_least("off_policy_delta", c.off_policy_delta, 0), at_least("correction_low", c.correction_low, 0);
  FULGUR_CHECK(c.clip_low <= 1, "[rl] clip_low: expected at most 1, got ", c.clip_low);
  at_least("correction_high", c.correction_high, c.correction_low);
}

Objective objective(const ObjectiveConfig& c, const SampledTokens& t) {
  Objective out;
  out.gradient.resize(t.log_prob.size());
  size_t first = 0;
  for (size_t m = 0; m < t.counts.size(); ++m) {
    size_t count = t.counts[m];
    auto of = [&](std::span<const float> all) { return all.empty() ? all : all.subspan(first, count); };
    auto now = of(t.log_prob), old = of(t.old), reference = of(t.reference), proximal = of(t.proximal);
    double advantage = t.advantage[m], drift = mean_difference(old, now);
    Treatment member;
    member.masked = c.off_policy_delta > 0 && advantage < 0 && drift > c.off_policy_delta;
    if (c.correction == "geometric") {
      double mean_ratio = std::exp(mean_difference(proximal, old));
      member.rejected = mean_ratio < c.correction_low || mean_ratio > c.correction_high;
    }
    for (size_t i = 0; i < count; ++i) {
      double r_old = std::exp(double(now[i]) - old[i]), r = r_old, correction = member.rejected ? 0 : 1;
      if (c.correction != "none") {
        r = std::exp(double(now[i]) - proximal[i]);
        double stale = std::exp(double(proximal[i]) - old[i]);
        if (c.correction == "tis") correction = std::min(stale, c.correction_high);
        if (c.correction == "icepop") correction = stale < c.correction_low || stale > c.correction_high ? 0 : stale;
      }
      Term s = surrogate(r, advantage, c), d;
      double kept = member.masked ? 0 : correction;
      if (!reference.empty()) {
        double u = double(now[i]) - reference[i];
        d = divergence(c.kl, u, r_old);
        out.k1 += u, out.k3 += std::exp(-u) + u - 1, out.unbiased_kl += r_old * (std::exp(-u) + u - 1);
      }
      out.loss -= t.weight[m] * (kept * s.value - c.kl_coefficient * d.value);
      out.gradient[first + i] = float(-t.weight[m] * (kept * s.slope - c.kl_coefficient * d.slope));
      out.clipped_tokens += s.slope == 0 && advantage != 0, out.ratio += r_old;
      out.rejected_tokens += correction == 0, out.log_old_over_new += double(old[i]) - now[i];
    }
    out.tokens += double(count), ++out.members, out.negative_members += advantage < 0;
    if (member.masked) ++out.masked_members, out.masked_tokens += double(count);
    first += count;
  }
  return out;
}

std::vector<std::optional<double>> advantages(std::span<const std::optional<double>> rewards, std::span<const int64_t> group,
                                              bool divide_by_std, bool drop_equal) {
  std::map<int64_t, std::vector<size_t>> groups;
  for (size_t i = 0; i < rewards.size(); ++i)
    if (rewards[i]) groups[group[i]].push_back(i);
  std::vector<std::optional<double>> out(rewards.size());
  for (const auto& [number, members] : groups) {
    if (members.size() < 2) continue;
    double sum = 0, squares = 0;
    for (size_t i : members) sum += *rewards[i];
    double mean = sum / double(members.size());
    bool equal = true;
    for (size_t i : members) squares += (*rewards[i] - mean) * (*rewards[i] - mean), equal &= *rewards[i] == *rewards[members[0]];
    if (equal && drop_equal) continue;
    double scale = divide_by_std ? 1 / (std::sqrt(squares / double(members.size())) + 1e-6) : 1;
    for (size_t i : members) out[i] = (*rewards[i] - mean) * scale;
  }
  return out;
}

}  // namespace fulgur
