// GRPO's objective with DeepSeek-V3.2's stabilisers, and its gradient, over plain numbers: what is differentiated is a token's
// log-probability, the rest is the model's business. Paper 3.1; spec F. No torch. Thread-safe.
//
//   J = sum over tokens of weight * { c * M * min(r A, clip(r, 1 - low, 1 + high) A) - beta * D },  the loss is -J
//   r = pi_theta / pi_old, where pi_old is what the sampler drew with; A the advantage of the token's member
//   M: off-policy sequence mask; c: a correction of other stacks, for comparison; D: an estimate of KL(pi_theta || pi_ref)
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace fulgur {

struct ObjectiveConfig {
  double clip_low = 0.2, clip_high = 0.2;
  // The KL's strength, and its estimator of u = log(pi_theta / pi_ref), rho = exp(-u):
  //   unbiased: r (rho + u - 1), r attached and not clipped;  k1: u;  k2: u^2 / 2;  k3: rho + u - 1
  double kl_coefficient = 0;
  std::string kl = "unbiased";
  // delta: a member with A < 0 whose mean of log(pi_old / pi_theta) over its sampled tokens exceeds it has no surrogate; its KL
  // stays. 0: off.
  double off_policy_delta = 0;
  // none; tis: c = min(pi_prox / pi_old, high); icepop: c = pi_prox / pi_old within [low, high], else 0; geometric: a member
  // whose geometric mean of pi_prox / pi_old is outside [low, high] has no surrogate. All take r against pi_prox, the policy
  // before the update.
  std::string correction = "none";
  double correction_low = 0.5, correction_high = 2;
};

// Throws InputError that names the field.
void validate(const ObjectiveConfig& config);

// Sampled tokens of whole members, one member after another.
struct SampledTokens {
  std::span<const float> log_prob;    // under pi_theta now
  std::span<const float> old;         // when it was drawn
  std::span<const float> reference;   // under pi_ref; empty where the KL has no strength
  std::span<const float> proximal;    // under pi_prox; empty without a correction
  std::span<const int64_t> counts;    // tokens of each member
  std::span<const double> advantage;  // of each member
  std::span<const double> weight;     // of each member's tokens
};

struct Objective {
  double loss = 0;
  std::vector<float> gradient;  // of the loss by log_prob

  // Sums over tokens or members, to be divided by their numbers.
  double tokens = 0, members = 0, negative_members = 0;
  double masked_members = 0, masked_tokens = 0;  // by the off-policy mask
  double rejected_tokens = 0;                    // by a correction
  double clipped_tokens = 0;                     // whose surrogate has no slope
  double ratio = 0, log_old_over_new = 0;
  double k1 = 0, k3 = 0, unbiased_kl = 0;
};
Objective objective(const ObjectiveConfig& config, const SampledTokens& tokens);

// Rewards to advantages: R - mean over the member's group, over the standard deviation (+ 1e-6) where asked for. `group` numbers
// each member's group. An invalid member, without a reward, leaves its group; a group of fewer than two is dropped, and with
// `drop_equal` one whose rewards are all the same. None: the member is not trained on.
std::vector<std::optional<double>> advantages(std::span<const std::optional<double>> rewards, std::span<const int64_t> group,
                                              bool divide_by_std, bool drop_equal);

}  // namespace fulgur
