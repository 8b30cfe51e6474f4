#include <cstdio>
#include <map>

#include "fulgur/base/error.h"
#include "fulgur/cli/run.h"

namespace fulgur::cli {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string recipe, out, data, model;
  bool resume = false;
  std::map<std::string, std::string> flags;  // of StageConfig, as typed
};

void set_field(const std::string& flag, const std::string& text, std::string& field) { (void)flag, field = text; }
void set_field(const std::string& flag, const std::string& text, double& field) { field = parse_count(text, flag); }
template <class Integer>
requires std::is_integral_v<Integer>
void set_field(const std::string& flag, const std::string& text, Integer& field) {
  double value = parse_count(text, flag);
  if (value < 0 || value != double(Integer(value)))
    throw UsageError(cat("[usage] ", flag, ": expected a whole number, got ", text));
  field = Integer(value);
}

std::string flag_name(std::string key) {
  std::replace(key.begin(), key.end(), '_', '-');
  return "--" + key;
}

int train(const std::string& stage, const Options& options, bool json) {
  Recipe recipe = read_recipe(options.recipe);
  visit_stage(recipe.stage(stage), [&](const char* key, auto& field) {
    if (auto found = options.flags.find(key); found != options.flags.end()) set_field(flag_name(key), found->second, field);
  });
  if (auto seed = options.flags.find("seed"); seed != options.flags.end()) recipe.seed = recipe.stage(stage).seed;
  auto checkpoints = fs::path(options.out) / "checkpoints";
  bool begun = false;
  if (fs::is_directory(checkpoints))
    for (const auto& entry : fs::directory_iterator(checkpoints))
      begun |= entry.path().filename().string().rfind(stage + "-", 0) == 0;
  if (begun && !options.resume)
    throw InputError(cat("[train] ", options.out, ": expected a run without a ", stage, " stage, got one that has begun"),
                     "--resume goes on with it; or give another --out");
  Run run(options.out, recipe);
  if (!options.data.empty()) run.data = options.data;
  bool finished = run.train(stage, options.model);
  if (json) std::printf("%s\n", Json{{"stage", stage}, {"run", options.out}, {"finished", finished}}.dump().c_str());
  else std::printf("%s: %s\n", options.out.c_str(), finished ? cat(stage, " finished").c_str() : "stopped; --resume goes on");
  return finished ? 0 : kStopped;
}

void add_stage(CLI::App& train_command, Common& common, const std::string& stage, const std::string& text) {
  auto options = std::make_shared<Options>();
  auto* command = train_command.add_subcommand(stage, text);
  command->add_option("recipe", options->recipe, "Recipe, a TOML file")->required();
  command->add_option("--out", options->out, "Run directory")->required();
  command->add_option("--data", options->data, "Folder of token shards with tokenizer.json (default: RUN/data)");
  command->add_option("--model", options->model,
                      stage == "pretrain" ? "Start from this model (default: fresh weights)"
                                          : "Start from this model (default: the stage before, of the run)");
  command->add_flag("--resume", options->resume, "Go on from the stage's newest checkpoint");
  StageConfig defaults;
  visit_stage(defaults, [&](const char* key, const auto& value) {
    std::string name = key;
    command->add_option_function<std::string>(
        flag_name(key), [options, name](const std::string& typed) { options->flags[name] = typed; },
        cat("Instead of the recipe's ", stage, ".", key, " (default ", value, ")"));
  });
  command->footer(cat("Example:\n  fulgur train ", stage, " recipes/speedrun.toml --out runs/a --data shards --tokens 1M"));
  command->callback([=, &common] { common.exit_code = train(stage, *options, common.json); });
}

}  // namespace

void add_train(CLI::App& app, Common& common) {
  auto* command = app.add_subcommand("train", "One training stage");
  command->require_subcommand(1);
  add_stage(*command, common, "pretrain", "Dense attention, language loss");
  add_stage(*command, common, "warmup", "The indexer alone, towards the head-summed dense attention");
  add_stage(*command, common, "sparse", "Top-k attention, all parameters");
  command->footer("Example:\n  fulgur train pretrain recipes/speedrun.toml --out runs/a --data shards");
}

}  // namespace fulgur::cli
