// One training step's losses and gradients, without files: what the trainer, the benchmark and tests run.
#pragma once

#include <vector>

#include "fulgur/model/transformer.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/parallel.h"
#include "fulgur/train/stage.h"

namespace fulgur {

// What one optimiser step measured, summed over its forward passes.
struct StepSums {
  double nll = 0, mtp_nll = 0, balance = 0;
  std::vector<double> kl;                 // a layer
  std::vector<std::vector<double>> load;  // a layer: tokens of each expert; empty where it has none
  int64_t targets = 0, mtp_targets = 0, rows = 0, text_bytes = 0;
  std::vector<double> rank_seconds;  // each rank's own work, without waiting for the others
};

// Leaves the gradients of the stage's loss over all parts of all ranks in the parameters; `parts` are this rank's, a
// forward and backward pass each. Losses are divided by the counts of the whole step, so that parts of any size add up to
// the same loss. Gradients add up as a balanced tree over the parts of all ranks (TreeSum), losses in their order.
//   language stages: mean NLL + mtp_weight * mean MTP NLL + balance_weight * balance loss a sequence
//   stages with an indexer loss: + sum over layers of the mean over rows of KL (paper 2.1.1)
StepSums accumulate_gradients(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                              const Tokenizer& tokenizer, ProcessGroup& group);

// The same losses without gradients, of this rank's parts alone.
StepSums measure_losses(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                        const Tokenizer& tokenizer);

// The one number a stage is watched by: mean NLL in nats a token, or the KL summed over layers (warmup).
double shown_loss(const StageConfig& config, const StepSums& sums);

// Auxiliary-loss-free balancing: b_i += bias_speed * sign(mean load - load_i).    Spec A.4.
void balance_experts(Weights& weights, const StageConfig& config, const StepSums& sums);

}  // namespace fulgur
