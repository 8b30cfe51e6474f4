// Figures with their share of this machine's limits, measured in the same run, and the reference beside them.
#include "fulgur/ops/bench.h"

#include <ATen/Parallel.h>
#include <ATen/ops/randint.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/cli/recipe.h"
#include "fulgur/model/cost.h"
#include "fulgur/ops/arena.h"
#include "fulgur/ops/isa.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/train/optimizer.h"
#include "fulgur/train/plan.h"
#include "fulgur/train/step.h"

namespace fulgur::cli {
namespace {
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Options {
  std::string filter, against, recipe, python;
  double seconds = 0.5;
  bool scaling = false;
  int64_t steps = 8;
};

// Shares of the limit beside those of an earlier run, whose machine may have been faster or slower.
void compare(const Json& results, const Json& earlier) {
  std::printf("%-24s %-32s %9s %9s %7s\n", "operation", "case", "then", "now", "faster");
  for (const auto& r : results)
    for (const auto& e : earlier) {
      if (e["name"] != r["name"] || e["case"] != r["case"] || e["threads"] != r["threads"]) continue;
      double then = e["share"], now = r["share"];
      std::printf("%-24s %-32s %7.0f %% %7.0f %% %6.2fx\n", r["name"].get<std::string>().c_str(),
                  r["case"].get<std::string>().c_str(), 100 * then, 100 * now, now / then);
    }
}

}  // namespace

Json result_json(const std::string& name, const std::string& label, const std::vector<Sample>& samples, double flops,
                 double bytes) {
  std::vector<double> seconds, shares;
  for (const auto& s : samples) seconds.push_back(s.seconds), shares.push_back(s.limit / s.seconds);
  return {{"name", name},   {"case", label},  {"threads", threads()},   {"seconds", median(seconds)},
          {"flops", flops}, {"bytes", bytes}, {"share", median(shares)}};
}

void finish_bench(const Limits& limits, Json results, const Json& earlier, const Json& also) {
  for (auto& r : results) r["share_of_best"] = limits.best(r["flops"], r["bytes"]) / r["seconds"].get<double>();
  std::printf("best peaks of the run: %.0f GFLOP/s, %.1f GB/s\n", limits.flops() / 1e9, limits.bandwidth() / 1e9);
  if (!earlier.empty()) compare(results, earlier);
  Json out = {{"machine", machine_json()},
              {"peaks", {{"flops", limits.flops()}, {"bytes_per_second", limits.bandwidth()}}},
              {"results", results}};
  out.update(also);
  std::printf("%s\n", out.dump().c_str());
}

namespace {

void print_row(const Json& r) {
  double seconds = r["seconds"];
  std::printf("%-24s %-32s %10.3f %9.1f %8.1f %6.0f %%", r["name"].get<std::string>().c_str(),
              r["case"].get<std::string>().c_str(), seconds * 1e3, r["flops"].get<double>() / seconds / 1e9,
              r["bytes"].get<double>() / seconds / 1e9, 100 * r["share"].get<double>());
  if (r["faster"].is_null()) std::printf("%11s\n", "-");
  else std::printf(" %9.3f %6.2fx\n", r["reference_seconds"].get<double>() * 1e3, r["faster"].get<double>());
  std::fflush(stdout);
}

void print_head(const Limits& limits) {
  std::printf("peaks: %.0f GFLOP/s (best large GEMM), %.1f GB/s (reading 2 GB), %d threads, %s\n", limits.flops() / 1e9,
              limits.bandwidth() / 1e9, threads(), isa_name(isa()));
  std::printf("%-24s %-32s %10s %9s %8s %8s %9s %7s\n", "operation", "case", "ms", "GFLOP/s", "GB/s", "of limit", "ref ms",
              "faster");
}

// The results in the last line of what `fulgur bench` printed earlier.
Json earlier_results(const std::string& file) {
  if (file.empty()) return Json::array();
  auto text = read_file(file);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  auto json = parse_json(std::string_view(text).substr(text.rfind('\n') + 1), file);
  FULGUR_CHECK(json.is_object() && json.contains("results") && json["results"].is_array(), "[bench] expected results in ", file,
               ", got none\n  hint: fulgur bench ops >FILE keeps what --against reads");
  return json["results"];
}

// The same on one thread, which scaling is measured beside.
void on_one_thread(const std::function<void()>& work) {
  int all = threads();
  set_threads(1), at::set_num_threads(1);
  work();
  set_threads(all), at::set_num_threads(all);
}

// Own and reference in turn, so that both meet the same machine; short ones several times, since threads that slept are slow.
Json time_case(ops::BenchCase c, double budget, bool scaling, Limits& limits) {
  if (scaling) c.reference = [run = c.run] { on_one_thread(run); }, c.reference_parts = 1;
  std::vector<Sample> own;
  std::vector<double> reference, faster, machine;
  c.run();
  if (c.reference) c.reference();
  int times = std::clamp(int(0.02 / time_once(c.run)), 1, 100);
  auto mean_seconds = [&](const std::function<void()>& work) {
    return time_once([&] {
             for (int i = 0; i < times; ++i) work();
           }) /
           times;
  };
  auto end = Clock::now() + std::chrono::duration<double>(budget);
  while (own.size() < 3 || (Clock::now() < end && own.size() < 200)) {
    own.push_back(sample(limits, c.flops, c.bytes, [&] { return mean_seconds(c.run); }));
    if (!c.reference) continue;
    reference.push_back(mean_seconds(c.reference) * c.reference_parts);
    faster.push_back(reference.back() / own.back().seconds);
    if (scaling) on_one_thread([&] { machine.push_back(limits.now(c.flops, c.bytes) / own.back().limit); });
  }
  Json r = result_json(c.name, c.label, own, c.flops, c.bytes);
  r["reference_seconds"] = c.reference ? Json(median(reference)) : Json();
  r["faster"] = c.reference ? Json(median(faster)) : Json();
  if (scaling) r["machine_scaling"] = median(machine);  // what the peak gained by the same threads at the same time
  return r;
}

void bench_ops(const Options& o) {
  auto earlier = earlier_results(o.against);
  at::set_num_threads(threads());
  Limits limits;
  print_head(limits);
  Json results = Json::array();
  for (const auto& group : ops::bench_registry()) {
    if (group.name.find(o.filter) == std::string::npos && o.filter.find(group.name) == std::string::npos) continue;
    for (const auto& c : group.make()) {
      if (c.name.find(o.filter) == std::string::npos || g_stop) continue;
      results.push_back(time_case(c, o.seconds, o.scaling, limits));
      print_row(results.back());
    }
  }
  finish_bench(limits, results, earlier);
}

// A tokenizer of bytes alone: the benchmark's tokens are random, only their lengths in bytes are asked for.
Tokenizer byte_tokenizer() {
  BpeOptions options{.vocab_size = 257, .special_tokens = {"<eos>"}};
  return Tokenizer(vocabulary_of(train_bpe({}, options), options, deepseek_patterns()));
}

TrainBatch random_batch(int64_t sequences, int64_t context) {
  auto tokens = at::randint(257, {sequences * context}).to(at::kInt);
  auto next = tokens.roll(-1), next2 = tokens.roll(-2);
  std::vector<int64_t> lengths(sequences, context);
  auto ends = at::arange(sequences * context).remainder(context);
  next.masked_fill_(ends == context - 1, -1), next2.masked_fill_(ends >= context - 2, -1);
  return {pack_documents(tokens, lengths), next, next2, (at::arange(sequences + 1) * context).to(at::kInt)};
}

// The plain PyTorch model of the same size: median seconds of a step, or null where there is no Python with torch.
Json plain_pytorch(const Options& o, const fs::path& config, const std::string& stage, int64_t sequences, int64_t context) {
  auto script = resource("bench/plain_model.py");
  auto python = o.python.empty() ? fs::path(FULGUR_SOURCE_DIR) / ".venv/bin/python" : fs::path(o.python);
  if (!fs::exists(script) || !fs::exists(python)) return nullptr;
  // Let it keep its memory, as we do: with glibc's defaults the kernel clears its pages anew at every step.
  auto command = cat("env -u GOMP_SPINCOUNT MALLOC_MMAP_THRESHOLD_=33554432 MALLOC_TRIM_THRESHOLD_=17179869184 '",
                     python.string(), "' '", script.string(), "' --config '", config.string(), "' --stage ", stage, " --threads ",
                     threads(), " --sequences ", sequences, " --context ", context, " --steps ", o.steps, " 2>/dev/null");
  FILE* pipe = popen(command.c_str(), "r");
  std::string out;
  char block[4096];
  while (pipe && fgets(block, sizeof block, pipe)) out = block;
  if (!pipe || pclose(pipe) != 0) return nullptr;
  return parse_json(out, "bench/plain_model.py").value("seconds", Json());
}

// Memory of the steps since reset_arena_peak, beside the plan. Null where there is no arena.
void add_memory(Json& r, int64_t planned, int64_t held_before) {
  auto use = arena_use();
  r["planned_bytes"] = planned;
  r["peak_bytes"] = use.held > 0 ? Json(use.peak) : Json();
  r["arena_grown_bytes"] = use.held > 0 ? Json(use.held - held_before) : Json();
  if (use.held == 0) return;
  std::printf("  memory: peak %.1f MB, planned %.1f MB (%+.1f %%), arena grown by %lld B\n", double(use.peak) / 1e6,
              double(planned) / 1e6, 100 * (double(planned) / double(use.peak) - 1),
              static_cast<long long>(use.held - held_before));
  std::fflush(stdout);
}

void bench_train(const Options& o) {
  auto earlier = earlier_results(o.against);
  at::set_num_threads(threads());
  Recipe recipe = read_recipe(o.recipe.empty() ? resource("recipes/speedrun.toml") : fs::path(o.recipe));
  auto config = model_config(recipe);
  auto folder = fs::temp_directory_path() / cat("fulgur-bench-", getpid());
  fs::create_directories(folder);
  auto tokenizer = byte_tokenizer();
  write_file_atomic(folder / "config.json", config_json(config).dump(2));
  Limits limits;
  print_head(limits);
  Json results = Json::array();
  for (std::string name : {"pretrain", "warmup", "sparse"}) {
    StageConfig stage = effective_stage(recipe, name);
    if (name.find(o.filter) == std::string::npos || g_stop) continue;
    stage.batch_tokens = stage.micro_tokens;
    Transformer model(config, init_weights(config, 1));
    Optimizer optimizer(model.weights(), stage);
    auto batch = random_batch(stage.batch_tokens / stage.context, stage.context);
    ProcessGroup alone;
    auto step = [&] {
      auto sums = accumulate_gradients(model, stage, {batch}, tokenizer, alone);
      optimizer.step(1, optimizer.norms());
      balance_experts(model.weights(), stage, sums);
    };
    double flops = train_flops(config, TrainForm(stage.kind), stage.context) * double(stage.batch_tokens);
    double bytes = 28.0 * double(count_parameters(config).total);  // the optimiser's pass alone
    auto timed = [&] {
      std::vector<Sample> samples;
      for (int64_t i = 0; i < o.steps; ++i) samples.push_back(sample(limits, flops, bytes, [&] { return time_once(step); }));
      return samples;
    };
    step(), step();
    reset_arena_peak();
    auto held = arena_use().held;
    auto own = timed();  // before and after the reference, so that both meet the same machine
    Json reference;
    double alone_limit = 0;
    if (o.scaling) {
      std::vector<double> alone_seconds, alone_limits;
      for (int64_t i = 0; i < o.steps; ++i)
        on_one_thread([&] {
          alone_limits.push_back(limits.now(flops, bytes));
          alone_seconds.push_back(time_once(step));
        });
      reference = median(alone_seconds);
      alone_limit = median(alone_limits);
    } else reference = plain_pytorch(o, folder / "config.json", name, stage.batch_tokens / stage.context, stage.context);
    auto after = timed();
    own.insert(own.end(), after.begin(), after.end());
    Json r = result_json("train " + name, cat(stage.batch_tokens, " tokens, context ", stage.context), own, flops, bytes);
    double seconds = r["seconds"];
    r["tokens_per_second"] = double(stage.batch_tokens) / seconds;
    r["reference_seconds"] = reference;
    r["faster"] = reference.is_null() ? Json() : Json(reference.get<double>() / seconds);
    std::vector<double> all_limits;
    for (const auto& s : own) all_limits.push_back(s.limit);
    if (o.scaling) r["machine_scaling"] = alone_limit / median(all_limits);
    print_row(r);
    add_memory(r, plan_step(config, stage).peak(), held);
    results.push_back(r);
  }
  fs::remove_all(folder);
  finish_bench(limits, results, earlier);
}

}  // namespace

void add_bench(CLI::App& app, Common&) {
  auto o = std::make_shared<Options>();
  auto* command =
      app.add_subcommand("bench", "Figures with their share of this machine's limits; the last line is one JSON object");
  command->require_subcommand(1);
  command->footer("Example:\n  fulgur bench ops --threads 1");
  auto* ops = command->add_subcommand("ops", "Every operation beside its reference in ATen");
  ops->add_option("--filter", o->filter, "Only operations whose name has this in it: mla, or 'sparse_mla V3.2 backward'");
  ops->add_option("--seconds", o->seconds, "Time for each case")->capture_default_str()->check(CLI::PositiveNumber);
  ops->add_option("--against", o->against, "What an earlier run printed: shares of the limit then and now");
  ops->add_flag("--scaling", o->scaling, "Beside the same on one thread, instead of the reference");
  ops->footer("Example:\n  fulgur bench ops --filter mla --threads 1");
  ops->callback([=] { bench_ops(*o); });
  auto* train = command->add_subcommand("train", "A training step of every stage beside a plain PyTorch model of the same size");
  train->add_option("--filter", o->filter, "Only stages whose name has this in it");
  train->add_option("--recipe", o->recipe, "Recipe (default: recipes/speedrun.toml)");
  train->add_option("--python", o->python, "A Python with torch (default: .venv of the source folder)");
  train->add_option("--steps", o->steps, "Timed steps before and after the reference")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  train->add_option("--against", o->against, "What an earlier run printed: shares of the limit then and now");
  train->add_flag("--scaling", o->scaling, "Beside the same on one thread, instead of PyTorch");
  train->footer("Example:\n  fulgur bench train --threads 1 --filter sparse");
  train->callback([=] { bench_train(*o); });
  add_bench_model(*command);
  add_bench_engine(*command);
  add_bench_text(*command);
  add_bench_kl(*command);
  add_bench_grpo(*command);
}

}  // namespace fulgur::cli
