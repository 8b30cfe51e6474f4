#include "fulgur/train/step_guard.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fulgur/base/error.h"

namespace fulgur {

constexpr size_t kRemembered = 32;
constexpr double kNoise = 0.5;  // nats: of losses near 0 one is soon many times another

std::string StepGuard::judge(double loss, const Optimizer::Norms& norms) {
  std::string bad;
  if (!std::isfinite(loss)) bad = cat("expected a finite loss, got ", loss);
  else if (!std::isfinite(norms.model) || !std::isfinite(norms.indexer))
    bad = cat("expected finite gradients, got norms of ", norms.model, " (model) and ", norms.indexer, " (indexer)");
  else if (spike_ > 0 && losses_.size() == kRemembered) {
    std::vector<double> sorted(losses_.begin(), losses_.end());
    std::nth_element(sorted.begin(), sorted.begin() + kRemembered / 2, sorted.end());
    double median = sorted[kRemembered / 2];
    if (loss > spike_ * median && loss > median + kNoise)
      bad = cat("expected a loss below ", spike_, " times the last ones' median ", median, ", got ", loss);
  }
  bad_in_a_row_ = bad.empty() ? 0 : bad_in_a_row_ + 1;
  if (!bad.empty()) return bad;
  losses_.push_back(loss);
  if (losses_.size() > kRemembered) losses_.pop_front();
  return "";
}

Json StepGuard::state() const { return {{"losses", losses_}, {"bad_in_a_row", bad_in_a_row_}}; }

void StepGuard::load_state(const Json& state) {
  losses_ = state.at("losses").get<std::deque<double>>();
  bad_in_a_row_ = state.at("bad_in_a_row").get<int64_t>();
}

}  // namespace fulgur
