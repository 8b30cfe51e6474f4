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
  // One step from the accumulated gradients, which are cleared. `step` counts from 0.
  Norms step(int64_t step);

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
