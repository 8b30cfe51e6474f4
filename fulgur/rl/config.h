// One run of reinforcement learning: what is sampled, what is optimised, at which rates. Plain numbers; every field may stand in
// a recipe under [rl], or be a flag of `fulgur train rl`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fulgur/engine/engine.h"
#include "fulgur/model/config.h"
#include "fulgur/rl/objective.h"
#include "fulgur/rl/rollout.h"
#include "fulgur/train/stage.h"

namespace fulgur {

struct RlConfig {
  int64_t steps = 100;  // batches of rollouts
  // Families, separated by commas, each drawn as often: "name", "name:difficulty", or "name:low-high", whose difficulty follows
  // the pass rate (a curriculum).
  std::string tasks = "lookup2";
  int64_t prompts = 16;       // tasks of a step
  int64_t group = 16;         // attempts at each
  int64_t updates = 1;        // optimiser steps of a batch, each on an equal share of its groups
  int64_t context = 1024;     // tokens of a segment at most
  int64_t staleness = 0;      // steps that rollouts are drawn ahead of their update, beside those before it; 0: none
  int64_t round_tokens = 0;   // of a member between two swaps of the sampler's weights; 0: all of its episode
  int64_t resample = 0;       // times that groups of equal rewards are drawn again (dynamic sampling)
  bool keep_batches = false;  // each step's rollouts stay in RUN/batches,
  std::string replay = "";    // and are trained on again: a folder of them, instead of sampling

  std::string mode = "chat";   // chat or thinking
  std::string form = "plain";  // the prompt that tasks are put in (tasks/prompt_form.h); others than plain bring their mode
  int64_t max_tokens = 128;    // of an answer
  int64_t max_answers = 6;     // of an episode
  bool grammar = false;        // answers are held to V3.2's format and the schemas of the task's tools
  double temperature = 1, top_p = 1, min_p = 0;
  int64_t top_k = 0;
  std::string sampler_weights = "plain", sampler_cache = "plain";  // formats, as of `fulgur forward`: others give up exactness

  ObjectiveConfig objective;
  // What a token's term is divided by: the sampled tokens of its member (sequence, paper 3.1), all of the step's (token), or
  // max_tokens * max_answers (constant); sequence and constant give each group, and in it each member, the same weight.
  std::string normalise = "sequence";
  bool divide_by_std = false;      // advantages over the group's standard deviation
  bool drop_equal = true;          // groups whose rewards are all the same are not trained on
  bool keep_routing = true;        // the sampler's experts,
  bool keep_sampling_mask = true;  // kept sets,
  bool keep_selection = true;      // and selected keys are forced in training
  double indexer_kl = 1;           // strength of the indexer's own loss; 0: it is frozen
  double length_slope = 0;         // reward lost for each sampled token
  int64_t length_budget = 0;       // beyond this many
  double relative_length = 0;      // strength of the group's own length reward (Kimi k1.5): short right answers gain
  double language = 0;             // reward for an answer in the prompt's script
  // Who scores the answers to tasks with a rubric: an OpenAI-compatible endpoint; its key lies in an environment variable.
  std::string judge_url = "", judge_model = "", judge_key_variable = "";
  double reward_seconds = 60;  // beyond these a reward is invalid

  double lr = 1e-4, indexer_lr = 1e-3;
  std::string schedule = "constant";
  int64_t warmup_steps = 0;
  double final_lr = 0.1, decay_share = 0.3;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0, clip = 1;
  std::string dtype = "f32";
  uint64_t seed = 1;

  // How the run is watched and kept.
  int64_t cache_tokens = 65536;  // of the sampler; attempts it has no room for wait
  bool exact = true;             // stop where a log-probability of training differs from its sampler's
  int64_t checkpoint_every = 20, keep_last = 2;
  int64_t eval_every = 0;    // steps between evaluations on held-out tasks; 0: at the start and the end
  int64_t eval_tasks = 200;  // of each family; 0: none
  double hang_seconds = 1800;
};

// Calls visit(key, field) for every field a recipe or a flag may set, in order.
template <class Config, class Visit>
void visit_rl(Config& c, const Visit& visit) {
  visit("steps", c.steps), visit("tasks", c.tasks), visit("prompts", c.prompts), visit("group", c.group);
  visit("updates", c.updates), visit("context", c.context);
  visit("staleness", c.staleness), visit("round_tokens", c.round_tokens), visit("resample", c.resample);
  visit("keep_batches", c.keep_batches), visit("replay", c.replay);
  visit("mode", c.mode), visit("form", c.form), visit("max_tokens", c.max_tokens), visit("max_answers", c.max_answers);
  visit("grammar", c.grammar), visit("temperature", c.temperature), visit("top_p", c.top_p), visit("min_p", c.min_p),
      visit("top_k", c.top_k);
  visit("sampler_weights", c.sampler_weights), visit("sampler_cache", c.sampler_cache);
  auto& o = c.objective;
  visit("clip_low", o.clip_low), visit("clip_high", o.clip_high), visit("kl_coefficient", o.kl_coefficient), visit("kl", o.kl);
  visit("off_policy_delta", o.off_policy_delta), visit("correction", o.correction);
  visit("correction_low", o.correction_low), visit("correction_high", o.correction_high);
  visit("normalise", c.normalise), visit("divide_by_std", c.divide_by_std), visit("drop_equal", c.drop_equal);
  visit("keep_routing", c.keep_routing), visit("keep_sampling_mask", c.keep_sampling_mask);
  visit("keep_selection", c.keep_selection), visit("indexer_kl", c.indexer_kl);
  visit("length_slope", c.length_slope), visit("length_budget", c.length_budget), visit("relative_length", c.relative_length);
  visit("language", c.language), visit("judge_url", c.judge_url), visit("judge_model", c.judge_model);
  visit("judge_key_variable", c.judge_key_variable), visit("reward_seconds", c.reward_seconds);
  visit("lr", c.lr), visit("indexer_lr", c.indexer_lr), visit("schedule", c.schedule), visit("warmup_steps", c.warmup_steps);
  visit("final_lr", c.final_lr), visit("decay_share", c.decay_share), visit("beta1", c.beta1), visit("beta2", c.beta2);
  visit("eps", c.eps), visit("weight_decay", c.weight_decay), visit("clip", c.clip), visit("dtype", c.dtype);
  visit("seed", c.seed), visit("cache_tokens", c.cache_tokens), visit("exact", c.exact),
      visit("checkpoint_every", c.checkpoint_every);
  visit("keep_last", c.keep_last), visit("eval_every", c.eval_every), visit("eval_tasks", c.eval_tasks);
  visit("hang_seconds", c.hang_seconds);
}

// Whether runs that differ in this field differ in their weights.
bool rl_changes_result(const std::string& key);

// Throws InputError: [rl] key: expected ..., got ...
void validate(const RlConfig& config);

struct TaskKind {
  const Family* family;
  int64_t difficulty, hardest;  // a range where they differ; it begins with the first, and is evaluated at the second
};
std::vector<TaskKind> task_kinds(const std::string& tasks);  // of RlConfig::tasks
Task draw_task(const RlConfig& config, const TaskKind& kind, Split split, int64_t difficulty, uint64_t seed);

// The same for the rooms below: rates for the optimiser, whose steps are updates; the sampler's engine; how it draws.
StageConfig optimiser_config(const RlConfig& config);
EngineOptions engine_options(const RlConfig& config, const ModelConfig& model, int64_t attempts);
RolloutOptions rollout_options(const RlConfig& config, const Tokenizer* tokenizer = nullptr);  // with one, also the grammars

}  // namespace fulgur
