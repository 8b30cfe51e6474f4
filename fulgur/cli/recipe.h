// Recipes: one TOML page that says how a model is made. Unknown keys are errors, with file and line.
//   scale, seed, text, vocab_size, holdout_every, lead_in, drills, demos, forms, demo_count, hasty, hasty_from;  [model] keys of
//   config.json;  [pretrain] [warmup] [sparse] [sft] keys of StageConfig; [rl] keys of RlConfig
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>

#include "fulgur/model/config.h"
#include "fulgur/rl/config.h"
#include "fulgur/train/stage.h"

namespace fulgur::cli {

inline constexpr auto kStages = std::span(kStageNames).first(4);  // those of StageConfig

// Conversations of scripts at tasks.
struct Demonstrations {
  std::string tasks = "";       // "name" or "name:difficulty", separated by commas, in turn
  std::string forms = "plain";  // and these prompts (tasks/prompt_form.h), of those that suit the task
  int64_t count = 1000;
  double hasty = 0;       // share of scripts that give up early: what reinforcement learning can mend;
  double hasty_from = 0;  // behind this share of the conversations, over a fifth of which it rises
};

struct Recipe {
  double scale = 1;
  uint64_t seed = 1;
  std::string text = "mix";  // "mix", "kjv" (fetched from Debian packages), or a path
  int64_t vocab_size = 4096;
  int64_t holdout_every = 0;                          // as in PackOptions
  Demonstrations demos{.count = 4000, .hasty = 0.5};  // for [sft]; of no tasks: the run ends with sparse
  int64_t lead_in = 0;                                // tokens of repeated lines that pretrain reads before the text
  double drills = 0;                                  // bytes of copying exercises (tasks/drills.h) for each byte of fetched text
  Json model = Json::object();                        // overrides of config.json keys
  StageConfig pretrain{.kind = StageKind::pretrain}, warmup{.kind = StageKind::warmup}, sparse{.kind = StageKind::sparse};
  StageConfig sft{.kind = StageKind::sft};
  RlConfig rl;

  StageConfig& stage(const std::string& name);
};

// A `scale` above 0 takes the place of the recipe's. Tokens of the stages come back multiplied by the scale's square.
Recipe read_recipe(const std::filesystem::path& path, double scale = 0);
Json recipe_json(const Recipe& recipe);

// The one dial: width and experts grow with `scale`, depth by two layers a unit. Then the recipe's own keys.
ModelConfig model_config(const Recipe& recipe);

// The stage with a seed of its own that follows from the recipe's.
StageConfig effective_stage(const Recipe& recipe, const std::string& name);

}  // namespace fulgur::cli
