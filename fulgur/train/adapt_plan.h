// What an adaptation (adapt.h) takes of memory and of work, from the configuration alone: nothing is run. One process.
#pragma once

#include <optional>
#include <string>

#include "fulgur/train/adapt.h"
#include "fulgur/train/plan.h"

namespace fulgur {

struct AdaptationPlan {
  int64_t parameters = 0, indexer_parameters = 0;
  int64_t weights = 0;     // f32
  int64_t moments = 0;     // of the indexers
  int64_t pass = 0;        // of a step's sequences through the dense model
  double teach_flops = 0;  // of all steps
  int64_t sparse = 0;      // peak of the stage that trains the model too; 0: there is none
  double sparse_flops = 0;
  int64_t key_bytes = 0;    // a token's keys and values in f32,
  int64_t index_bytes = 0;  // and what the indexers keep beside them
  int64_t teaching() const { return weights + moments + pass; }
  int64_t highest() const { return std::max(teaching(), sparse); }
  std::string text() const;
};

AdaptationPlan plan_adaptation(const ModelConfig& config, const IndexerTeaching& teaching,
                               const std::optional<StageConfig>& sparse);

}  // namespace fulgur
