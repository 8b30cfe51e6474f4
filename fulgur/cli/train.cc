#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <optional>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/run.h"
#include "fulgur/train/checkpoint_files.h"

namespace fulgur::cli {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string recipe, out, data, init, messages;
  bool resume = false, force = false;
  double silence_seconds = 10, meet_seconds = 120;
  std::map<std::string, std::string> flags;  // of StageConfig or RlConfig, as typed
};

void set_field(const std::string& flag, const std::string& text, std::string& field) { (void)flag, field = text; }
void set_field(const std::string& flag, const std::string& text, double& field) { field = parse_count(text, flag); }
void set_field(const std::string& flag, const std::string& text, bool& field) {
  if (text != "true" && text != "false") throw UsageError(cat("[usage] ", flag, ": expected true or false, got ", text));
  field = text == "true";
}
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

bool train_in_group(const std::string& stage, const Options& options, ProcessGroup& group) {
  Recipe recipe = read_recipe(options.recipe);
  auto set = [&](const char* key, auto& field) {
    if (auto found = options.flags.find(key); found != options.flags.end()) set_field(flag_name(key), found->second, field);
  };
  bool rl = stage == "rl";
  if (rl) visit_rl(recipe.rl, set);
  else visit_stage(recipe.stage(stage), set);
  if (options.flags.contains("seed")) recipe.seed = rl ? recipe.rl.seed : recipe.stage(stage).seed;
  if (rl) validate(recipe.rl);
  else validate(recipe.stage(stage));
  if (has_checkpoints(options.out, stage) && !options.resume)
    throw InputError(cat("[train] ", options.out, ": expected a run without a ", stage, " stage, got one that has begun"),
                     "--resume goes on with it; or give another --out");
  std::optional<Run> run;
  auto open = [&] { run.emplace(options.out, recipe, group, RunOptions{options.init, options.force, options.messages, stage}); };
  if (group.leads()) open();
  group.barrier();  // the leader has made the directory
  if (!group.leads()) open();
  if (!options.data.empty()) run->data = options.data;
  return rl ? run->reinforce() : run->train(stage);
}

int train(const std::string& stage, const Options& options, const Common& common) {
  auto launch = read_launch([](const char* name) -> const char* { return std::getenv(name); });
  if (common.threads == 0 && launch.local_size > 1) set_threads(std::max(1, threads() / launch.local_size));
  ProcessGroup group(launch, options.silence_seconds, options.meet_seconds);
  bool finished = false;
  try {
    finished = train_in_group(stage, options, group);
  } catch (const std::exception& error) {
    std::string what = error.what();
    group.leave(what.substr(0, what.find('\n')));
    throw;
  }
  if (!group.leads()) return finished ? 0 : stop_code();
  if (common.json) std::printf("%s\n", Json{{"stage", stage}, {"run", options.out}, {"finished", finished}}.dump().c_str());
  else std::printf("%s: %s\n", options.out.c_str(), finished ? cat(stage, " finished").c_str() : "stopped; --resume goes on");
  return finished ? 0 : stop_code();
}

void add_stage(CLI::App& train_command, Common& common, const std::string& stage, const std::string& text) {
  auto options = std::make_shared<Options>();
  auto* command = train_command.add_subcommand(stage, text);
  command->add_option("recipe", options->recipe, "Recipe, a TOML file")->required();
  command->add_option("--out", options->out, "Run directory")->required();
  command->add_option("--data", options->data, "Folder of token shards with tokenizer.json (default: RUN/data)");
  command->add_option("--init", options->init,
                      stage == "pretrain" ? "Start from this model, with the recipe's [model] keys (default: fresh weights)"
                                          : "Start from this model (default: the stage before, of the run)");
  command->add_flag("--resume", options->resume, "Go on from the stage's newest whole checkpoint, where there is one");
  command->add_flag("--force", options->force, "Go on from a checkpoint of other settings, data or numeric path");
  command->add_option("--silence", options->silence_seconds, "With many processes: seconds until a silent one counts as dead")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--meet", options->meet_seconds, "With many processes: seconds to wait for all of them")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  auto add_flag = [&](const char* key, const auto& value) {
    std::string name = key;
    command->add_option_function<std::string>(
        flag_name(key), [options, name](const std::string& typed) { options->flags[name] = typed; },
        cat("Instead of the recipe's ", stage, ".", key, " (default ", std::boolalpha, value, ")"));
  };
  const RlConfig of_rl;
  const StageConfig of_stage;
  if (stage == "rl") visit_rl(of_rl, add_flag);
  else visit_stage(of_stage, add_flag);
  if (stage == "sft")
    command->add_option("--messages", options->messages, "Conversations, JSON Lines (default: RUN/data/messages.jsonl)");
  std::string own = stage == "sft"  ? " --messages demos.jsonl"
                    : stage == "rl" ? " --tasks lookup2 --steps 20"
                                    : " --data shards --tokens 1M";
  command->footer(cat("Example:\n  fulgur train ", stage, " recipes/speedrun.toml --out runs/a", own, "\n",
                      "Two processes:\n  torchrun --nproc-per-node 2 --no-python fulgur train ", stage,
                      " recipes/speedrun.toml --out runs/a --resume"));
  command->callback([=, &common] { common.exit_code = train(stage, *options, common); });
}

}  // namespace

void add_train(CLI::App& app, Common& common) {
  auto* command = app.add_subcommand("train", "One training stage");
  command->require_subcommand(1);
  add_stage(*command, common, "pretrain", "Dense attention, language loss");
  add_stage(*command, common, "warmup", "The indexer alone, towards the head-summed dense attention");
  add_stage(*command, common, "sparse", "Top-k attention, all parameters");
  add_stage(*command, common, "sft", "On conversations: what the assistant says");
  add_stage(*command, common, "rl", "On tasks, by what the model tries itself: GRPO with V3.2's stabilisers");
  command->footer("Example:\n  fulgur train pretrain recipes/speedrun.toml --out runs/a --data shards");
}

}  // namespace fulgur::cli
