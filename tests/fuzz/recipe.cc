// Inputs: a recipe in TOML.
#include "fulgur/cli/recipe.h"

#include <cstdlib>

#include "fulgur/cli/cli.h"
#include "tests/fuzz/fuzz.h"

// A copy of the one in main.cc, which would bring the whole program; the linker prefers the real one wherever it sees it.
__attribute__((weak)) double fulgur::cli::parse_count(const std::string& text, const std::string& flag) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  std::string unit = end;
  double scale = unit.empty() ? 1 : unit == "k" ? 1e3 : unit == "M" ? 1e6 : unit == "G" || unit == "B" ? 1e9 : 0;
  if (end == text.c_str() || scale == 0)
    throw UsageError(cat("[usage] ", flag, ": expected a number such as 4096, 200k or 3M, got ", text));
  return value * scale;
}

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("recipe.toml", fuzz::view(data, size));
  cli::Recipe recipe;
  ModelConfig config;
  for (double scale : {2.0, 0.0})
    if (!fuzz::accepts([&] { recipe = cli::read_recipe(path, scale), config = cli::model_config(recipe); })) return 0;
  Json written = config_json(config);
  Json again = config_json(parse_config(parse_json(written.dump(), "written"), "written"));
  fuzz::promise(again == written, "a config written is the config read");
  fuzz::promise(!cli::recipe_json(recipe).dump().empty(), "a recipe can be recorded");
  for (std::string stage : {"pretrain", "warmup", "sparse"})
    fuzz::accepts([&] {
      auto effective = cli::effective_stage(recipe, stage);
      validate(effective);
      fuzz::promise(stage_steps(effective) > 0, "a stage that is valid has a step");
      for (int64_t step : {int64_t(0), stage_steps(effective) - 1}) {
        double share = schedule_share(effective, step);
        fuzz::promise(share >= 0 && share <= 1, "a rate is a share of its peak");
      }
    });
  return 0;
}
