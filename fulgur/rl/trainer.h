// Reinforcement learning from a model to a better one, resumable at any step: rollouts, rewards, updates. What a run directory
// holds: as of train/trainer.h, and outcomes.jsonl (each reward, on disk before it is used) and episodes/ (what the model said at
// evaluations, JSON Lines).
#pragma once

#include <atomic>
#include <filesystem>

#include "fulgur/rl/config.h"
#include "fulgur/train/parallel.h"

namespace fulgur {

struct RlInputs {
  std::filesystem::path run;               // run directory; made when missing
  std::filesystem::path model;             // where it starts, and pi_ref: a folder with config.json, weights and tokenizer.json
  const std::atomic<int>* stop = nullptr;  // set by a signal on any rank: write a checkpoint and return
  bool force = false;                      // go on from a checkpoint of other settings
};

struct RlResult {
  std::filesystem::path checkpoint;  // the newest
  int64_t step = 0;
  bool finished = false;
};

// Goes on from the newest whole rl checkpoint of the run. All ranks call it with the same arguments; prompts must divide by
// updates times ranks. Weights are a function of (config, model, numeric path) alone: not of threads, kills, or how many ranks
// share the work. Throws InputError as train_stage does, and where training and sampler disagree (update.h).
RlResult train_rl(const RlConfig& config, const RlInputs& inputs, ProcessGroup& group);

// Share of held-out tasks that the model does right, drawn as in training, with its 95 % interval (Wilson).
struct PassRate {
  double rate = 0, low = 0, high = 0;
  int64_t tasks = 0;
  double length = 0;             // sampled tokens of an episode, on average
  std::vector<Member> episodes;  // in the order of the tasks
};
PassRate pass_rate(const Transformer& model, const Tokenizer& tokenizer, const RlConfig& config, const TaskKind& kind,
                   Split split, int64_t tasks);

}  // namespace fulgur
