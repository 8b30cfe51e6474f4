// Recipes: one TOML page that says how a model is made. Unknown keys are errors, with file and line.
//   scale, seed, text, vocab_size, holdout_every, drills, demos, forms, demo_count, hasty, hasty_from;  [model] keys of
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

struct Recipe {
  double scale = 1;
  uint64_t seed = 1;
  std::string text = "mix";  // "mix", "kjv" (fetched from Debian packages), or a path
  int64_t vocab_size = 4096;
  int64_t holdout_every = 0;    // as in PackOptions
  std::string demos = "";       // tasks that scripts demonstrate for [sft], as of [rl] tasks; none: the run ends with sparse
  std::string forms = "plain";  // how they are put (tasks/prompt_form.h)
  int64_t demo_count = 4000;    // conversations
  double hasty = 0.5;           // share of scripts that give up early: what reinforcement learning can mend;
  double hasty_from = 0;        // behind this share of the conversations, which show how it is done
  double drills = 0;            // bytes of copying exercises (tasks/drills.h) for each byte of fetched text
  Json model = Json::object();  // overrides of config.json keys
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
