// Judges each step before its gradients are taken: a NaN, an infinity, or a loss far above the last ones.
#pragma once

#include <deque>
#include <string>

#include "fulgur/base/json.h"
#include "fulgur/train/optimizer.h"

namespace fulgur {

class StepGuard {
 public:
  explicit StepGuard(const StageConfig& config) : spike_(config.spike) {}

  // What is wrong with a step, "" when nothing is. A good step's loss is remembered.
  std::string judge(double loss, const Optimizer::Norms& norms);
  int64_t bad_in_a_row() const { return bad_in_a_row_; }

  // The memory, for a checkpoint: a resumed run judges as the uninterrupted one would.
  Json state() const;
  void load_state(const Json& state);

 private:
  double spike_;
  std::deque<double> losses_;  // of the last good steps
  int64_t bad_in_a_row_ = 0;
};

}  // namespace fulgur
