// What an estimator of KL(pi_theta || pi_ref) does to a policy that is a table of logits: everything can be summed over all
// actions, so bias and variance are exact. No torch. Thread-safe.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace fulgur {

// d KL(pi_theta || pi_ref) / d logits = pi_theta (log(pi_theta / pi_ref) - KL).
std::vector<double> exact_kl_gradient(std::span<const double> logits, std::span<const double> reference);

// Of the gradient of objective()'s KL term by the logits, of one action drawn from pi_old.
struct EstimatedGradient {
  std::vector<double> mean;
  double deviation = 0;  // sqrt(E |g - mean|^2)
};
EstimatedGradient estimated_kl_gradient(const std::string& kl, std::span<const double> logits, std::span<const double> old,
                                        std::span<const double> reference);

}  // namespace fulgur
