#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/cli/run.h"
#include "fulgur/train/metrics.h"

namespace fulgur::cli {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string recipe, out = "runs/speedrun", text;
  double scale = 0;
  uint64_t seed = 0;
};

double mean(const Json& values) {
  double sum = 0;
  for (const auto& v : values) sum += v.get<double>();
  return values.empty() ? 0 : sum / double(values.size());
}

// The run's figures, each once: what the console shows and --json prints.
Json summary(const fs::path& folder) {
  Json eval = read_json(folder / "eval.json"), record = read_json(folder / "run.json"), out = {{"run", folder.string()}};
  for (const auto& [step, seconds] : record["steps"].items()) out["seconds"][step] = seconds;
  for (const auto& line : read_metrics(folder / "metrics.jsonl")) {
    auto stage = line["stage"].get<std::string>();
    if (line.contains("pass")) out["pass"][cat("behind ", line["step"].get<int64_t>(), " steps")] = line["pass"];
    if (!line.contains("seconds")) continue;
    double before = out["seconds"].value(stage, 0.0), seconds = line.value("seconds", 0.0);
    out["seconds"][stage] = before + seconds;
    if (line.contains("tokens")) out["tokens"][stage] = line["tokens"];
  }
  for (const auto& stage : eval["stages"])
    for (const auto& p : stage["perplexity"])
      if (p["context"] == record["recipe"]["sparse"]["context"])
        out["bits_per_byte"][stage["stage"].get<std::string>()][p["form"].get<std::string>()] = p["bits_per_byte"];
  const auto& indexer = eval["stages"].back()["indexer"];
  for (std::string key : {"recall", "mass", "window_recall", "window_mass"}) out["indexer"][key] = mean(indexer[key]);
  out["gap"] = out["bits_per_byte"]["sparse"]["sparse"].get<double>() - out["bits_per_byte"]["sparse"]["dense"].get<double>();
  return out;
}

void print(const Json& s) {
  std::printf("\n%-10s %10s %10s   bits per byte on held-out text\n", "step", "seconds", "tokens");
  double total = 0;
  for (const auto& [step, seconds] : s["seconds"].items()) {
    std::printf("%-10s %10.1f", step.c_str(), seconds.get<double>());
    total += seconds.get<double>();
    if (s["tokens"].contains(step)) std::printf(" %10s", human_count(s["tokens"][step].get<double>()).c_str());
    if (s["bits_per_byte"].contains(step))
      for (const auto& [form, bits] : s["bits_per_byte"][step].items())
        std::printf("   %s %.4f", form.c_str(), bits.get<double>());
    std::printf("\n");
  }
  std::printf("%-10s %10.1f\n\n", "all", total);
  const auto& q = s["indexer"];
  static const Json kNone = Json::object();
  const Json& pass = s.contains("pass") ? s["pass"] : kNone;
  for (const auto& [when, families] : pass.items())
    for (const auto& [family, splits] : families.items())
      for (const auto& [split, p] : splits.items())
        std::printf("%s %s, %s: %.1f %% of %lld held-out tasks (%.1f to %.1f)\n", family.c_str(), split.c_str(), when.c_str(),
                    100 * p["rate"].get<double>(), static_cast<long long>(p["tasks"].get<int64_t>()),
                    100 * p["low"].get<double>(), 100 * p["high"].get<double>());
  std::printf("sparse minus dense, same weights: %+.4f bits per byte\n", s["gap"].get<double>());
  std::printf("indexer: recall %.3f, attention mass %.3f of the ideal (last-k window: %.3f, %.3f)\n", q["recall"].get<double>(),
              q["mass"].get<double>(), q["window_recall"].get<double>(), q["window_mass"].get<double>());
}

int speedrun(const Options& options, bool json) {
  Recipe recipe =
      read_recipe(options.recipe.empty() ? resource("recipes/speedrun.toml") : fs::path(options.recipe), options.scale);
  if (options.seed > 0) recipe.seed = options.seed;
  if (!options.text.empty()) {
    FULGUR_CHECK(fs::exists(options.text), "[speedrun] --data ", options.text, ": expected a file or folder, got nothing there");
    recipe.text = fs::canonical(options.text).string();
  }
  ProcessGroup alone;
  Run run(options.out, recipe, alone);
  run.text(), run.tokenizer(), run.pack(), run.demonstrate();
  std::vector<std::string> stages{"pretrain", "warmup", "sparse"};
  if (!recipe.demos.tasks.empty()) stages.insert(stages.end(), {"sft", "rl"});
  for (const auto& stage : stages)
    if (!(stage == "rl" ? run.reinforce() : run.train(stage))) {
      std::fprintf(stderr, "stopped; the same command goes on from here\n");
      return stop_code();
    }
  run.evaluate(), run.report();
  if (g_stop) return stop_code();
  auto figures = summary(options.out);
  write_file_atomic(fs::path(options.out) / "summary.json", figures.dump(2) + "\n");
  if (json) {
    std::printf("%s\n", figures.dump().c_str());
    return 0;
  }
  print(figures);
  std::printf("report: %s/report.html\ntry it: build/bin/fulgur generate --model %s --prompt \"The \"\n", options.out.c_str(),
              options.out.c_str());
  return 0;
}

}  // namespace

void add_speedrun(CLI::App& app, Common& common) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("speedrun", "From raw text to a sparse-attention model: the whole recipe, small");
  command->add_option("--out", options->out, "Run directory; a run that was stopped goes on")->capture_default_str();
  command->add_option("--scale", options->scale, "The one dial: width, depth, experts, tokens (default: the recipe's, 1)");
  command->add_option("--data", options->text, "Your own text: a file or folder (text, HTML, JSON Lines with \"text\")");
  command->add_option("--recipe", options->recipe, "Another recipe (default: recipes/speedrun.toml)");
  command->add_option("--seed", options->seed, "Another seed (default: the recipe's)")->check(CLI::PositiveNumber);
  command->footer("Example:\n  fulgur speedrun --out runs/mine --data ~/notes --scale 0.5");
  command->callback([=, &common] { common.exit_code = speedrun(*options, common.json); });
}

}  // namespace fulgur::cli
