// Where a number went wrong: the step's forward pass once more, watching what every operation gives.
#pragma once

#include <string>
#include <vector>

#include "fulgur/train/optimizer.h"
#include "fulgur/train/step.h"

namespace fulgur {

// One line: the first parameter that is not finite; else the first operation of the forward pass that makes NaN or +inf of
// finite inputs, with the parameter it read last; else the parameter whose gradient is not finite, or is the largest.
// Call it while the bad gradients are still there; they are gone behind it. Not thread-safe, slow.
std::string diagnose_step(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                          const Tokenizer& tokenizer, const Optimizer& optimizer);

}  // namespace fulgur
