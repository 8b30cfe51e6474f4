// AdamW over a model's parameters in two groups, the model and the indexer, each with its own rate and clip.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "fulgur/model/weights.h"
#include "fulgur/train/stage.h"

namespace fulgur {

class Optimizer {
 public:
  // Marks the stage's parameters as wanting gradients, all others as not.
  Optimizer(Weights& weights, const StageConfig& config);

  struct Norms {
    double model = 0, indexer = 0;  // before clipping
  };
  Norms norms() const;  // of the accumulated gradients
  // One step from the accumulated gradients, which are cleared. `step` counts from 0.
  void step(int64_t step, const Norms& norms);
  void discard();  // the gradients, as if the step had not been
  // The parameter with the largest gradient, one that is not finite before all others: where a bad step shows.
  std::string largest_gradient() const;

  std::vector<at::Tensor*> trained() const;  // in a fixed order

  // Moments by "m.<parameter>" and "v.<parameter>".
  std::map<std::string, at::Tensor> state() const;
  void load_state(const std::map<std::string, at::Tensor>& state);

 private:
  struct Entry {
    Parameter parameter;
    at::Tensor m, v;
  };
  double norm(bool indexer) const;
  StageConfig config_;
  std::vector<Entry> entries_;
};

}  // namespace fulgur
