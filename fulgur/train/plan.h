// What a training step takes of the tensor arena (ops/arena.h), from the configuration alone: nothing is run. One process;
// tensors below 4 KB and the kernels' own buffers, which are no tensors, are left out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/model/config.h"
#include "fulgur/train/stage.h"

namespace fulgur {

// Bytes a layer keeps for its backward pass.
struct LayerKept {
  std::string name;  // "layer 0", "MTP layer"
  int64_t norms = 0, attention = 0, indexer = 0, mlp = 0;
  int64_t all() const { return norms + attention + indexer + mlp; }
};

// A point of the step at which the peak may lie; what is there beside the fixed parts.
struct StepPoint {
  std::string name;       // "experts, MTP layer"
  int64_t kept = 0;       // activations that wait for their backward pass
  int64_t gradients = 0;  // of weights, made so far
  int64_t workspace = 0;  // what the pass itself needs for a moment
  int64_t all() const { return kept + gradients + workspace; }
};

struct StepPlan {
  int64_t weights = 0;    // masters, f32
  int64_t optimiser = 0;  // AdamW's two moments of what the stage trains
  int64_t sums = 0;       // gradients of the parts before, where a step has several
  int64_t batch = 0;      // tokens, targets, rotations
  std::vector<LayerKept> layers;
  int64_t ends = 0;  // kept before and behind the layers
  std::vector<StepPoint> points;

  int64_t fixed() const { return weights + optimiser + sums + batch; }
  const StepPoint& highest() const;
  int64_t peak() const { return fixed() + highest().all(); }
};

// Throws InputError where the stage trains an indexer and the model has none.
StepPlan plan_step(const ModelConfig& config, const StageConfig& stage);

Json plan_json(const StepPlan& plan);

}  // namespace fulgur
