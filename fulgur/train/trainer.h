// Runs one training stage: from a model folder to the stage's last checkpoint, resumable at any step. What a run
// directory holds: run.json, metrics.jsonl, checkpoints/<stage>-<step>/, samples/, report.html. See docs/training.md for the
// stages, docs/checkpoints.md for what survives what, docs/distributed.md for many processes.
#pragma once

#include <atomic>
#include <filesystem>

#include "fulgur/base/json.h"
#include "fulgur/train/parallel.h"
#include "fulgur/train/stage.h"

namespace fulgur {

struct StageInputs {
  std::filesystem::path run;               // run directory; made when missing
  std::filesystem::path data;              // folder of token shards
  std::filesystem::path model;             // where the stage starts: a folder with config.json, weights and tokenizer.json
  std::filesystem::path lead_in = {};      // of pretrain: folder of token shards that are read once before those of `data`
  std::filesystem::path messages = {};     // conversations of sft, a file of JSON Lines
  Json config = Json::object();            // keys of config.json that take the place of the folder's
  const std::atomic<int>* stop = nullptr;  // set by a signal on any rank: write a checkpoint and return
  bool force = false;                      // go on from a checkpoint of other settings, data or numeric path
};

struct StageResult {
  std::filesystem::path checkpoint;  // the newest
  int64_t step = 0;
  bool finished = false;
  double seconds = 0;  // of this call
  double tokens_per_second = 0;
};

// Goes on from the stage's newest whole checkpoint when the run has one. All ranks of `group` call it with the same
// arguments; rank 0 alone writes. Throws InputError
//   when that checkpoint was made with another configuration, other data or another numeric path: names the field;
//   at a step with a NaN, an infinity or a loss spike: stage, step, layer, operation, last good checkpoint;
//   when a file cannot be written, or a rank is gone.
StageResult train_stage(const StageConfig& config, const StageInputs& inputs, ProcessGroup& group);

// What a result depends on beside its inputs: instruction set, libtorch and the instruction set it chose.
Json numeric_path();

}  // namespace fulgur
