// Members as the rows of one batch, for a forward pass over what they drew. A row stands for each token of a segment but the
// last.
#pragma once

#include <vector>

#include "fulgur/model/transformer.h"
#include "fulgur/ops/log_prob/log_prob.h"
#include "fulgur/rl/rollout.h"

namespace fulgur {

// apart:   each segment is a document of its own.
// shared:  the prompt that all members begin with has its rows once, before all others: a half or a third of the rows at 16
//          answers to a prompt of 100 tokens. The choices in `replay` must then be forced, since no range says what such a row
//          may see. A row's bits are the same as apart. Where the beginnings differ in anything, the rows lie apart.
enum class RowLayout { apart, shared };

struct PolicyRows {
  Batch batch;
  at::Tensor copies_N;          // f32: how many rows of the layout `apart` each stands for
  Replay replay;                // what the sampler chose, one entry a layer of the model
  at::Tensor rows, targets;     // int64 rows whose next token was drawn; int32, that token
  ops::Kept kept;               // what it was drawn among; nothing where `kept_sets` is false
  std::vector<float> old;       // its log-probability then,
  std::vector<float> proximal;  // and before the step's updates
  std::vector<int64_t> counts;  // drawn tokens of each member
};
PolicyRows policy_rows(const ModelConfig& config, const std::vector<const Member*>& members, bool kept_sets,
                       RowLayout layout = RowLayout::apart);

}  // namespace fulgur
