#include "fulgur/rl/estimators.h"

#include <algorithm>
#include <cmath>

#include "fulgur/rl/objective.h"

namespace fulgur {
namespace {

std::vector<double> log_softmax(std::span<const double> logits) {
  double top = *std::max_element(logits.begin(), logits.end()), sum = 0;
  for (double x : logits) sum += std::exp(x - top);
  std::vector<double> out;
  for (double x : logits) out.push_back(x - top - std::log(sum));
  return out;
}

}  // namespace

std::vector<double> exact_kl_gradient(std::span<const double> logits, std::span<const double> reference) {
  auto p = log_softmax(logits), q = log_softmax(reference);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i]) * (p[i] - q[i]);
  std::vector<double> out;
  for (size_t i = 0; i < p.size(); ++i) out.push_back(std::exp(p[i]) * (p[i] - q[i] - kl));
  return out;
}

EstimatedGradient estimated_kl_gradient(const std::string& kl, std::span<const double> logits, std::span<const double> old,
                                        std::span<const double> reference) {
  auto p = log_softmax(logits), o = log_softmax(old), q = log_softmax(reference);
  size_t n = p.size();
  EstimatedGradient out{std::vector<double>(n)};
  double squares = 0;
  for (size_t action = 0; action < n; ++action) {
    float now = float(p[action]), then = float(o[action]), of_reference = float(q[action]);
    int64_t one = 1;
    double none = 0, whole = 1;
    auto slope = objective({.kl_coefficient = 1, .kl = kl},
                           {{&now, 1}, {&then, 1}, {&of_reference, 1}, {}, {&one, 1}, {&none, 1}, {&whole, 1}})
                     .gradient[0];
    // d log pi(action) / d logits = onehot(action) - pi
    for (size_t i = 0; i < n; ++i) {
      double g = slope * ((i == action) - std::exp(p[i]));
      out.mean[i] += std::exp(o[action]) * g, squares += std::exp(o[action]) * g * g;
    }
  }
  for (double mean : out.mean) squares -= mean * mean;
  out.deviation = std::sqrt(std::max(0.0, squares));
  return out;
}

}  // namespace fulgur
