// Runs one training stage: from a model folder to the stage's last checkpoint, resumable at any step. What a run
// directory holds: run.json, metrics.jsonl, checkpoints/<stage>-<step>/, samples/, report.html.
#pragma once

#include <atomic>
#include <filesystem>

#include "fulgur/train/stage.h"

namespace fulgur {

struct StageInputs {
  std::filesystem::path run;                // run directory; made when missing
  std::filesystem::path data;               // folder of token shards
  std::filesystem::path model;              // where the stage starts: a folder with config.json, weights and tokenizer.json
  const std::atomic<bool>* stop = nullptr;  // set by a signal: write a checkpoint and return
};

struct StageResult {
  std::filesystem::path checkpoint;  // the newest
  int64_t step = 0;
  bool finished = false;
  double seconds = 0;  // of this call
  double tokens_per_second = 0;
};

// Goes on from the stage's newest checkpoint when the run has one. Throws InputError when that checkpoint was made with
// another configuration, other data or another instruction set; names the field.
StageResult train_stage(const StageConfig& config, const StageInputs& inputs);

}  // namespace fulgur
