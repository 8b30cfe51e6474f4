// What a model is, and what it will cost here: before it is loaded, or trained.
#include <algorithm>
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/system_memory.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/cli/recipe.h"
#include "fulgur/model/cost.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/plan.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string model, plan, dtype = "bf16", attention = "sparse", weights_format = "plain", cache = "plain";
  int64_t context = 0;
};

// Beside its limits' time a step takes so much: the engine's benchmarks reach .72 to .95 of prefill's limit and .53 to 1.0 of
// decoding's, and a layer's operations cost so many seconds whatever their size (SmolLM2's 30 layers on two cores).
constexpr double kReached = 0.75, kLayerSeconds = 150e-6;

struct Rate {
  double expected, at_most;  // tokens/s
};

// What running takes here, by this machine's peaks of a moment ago.
struct Estimate {
  int64_t weights, cache, memory;                   // bytes; those free
  double flops, bandwidth;                          // a second
  Rate prefill, prefill_deep, decode, decode_deep;  // with nothing held, and with the context
};

Estimate estimate(const ModelConfig& config, const Options& o) {
  bool sparse = config.has_indexer() && o.attention == "sparse";
  auto type = type_of(o.dtype);
  Packing packing{type, sparse, weight_format(o.weights_format)};
  Cache page(config, sparse ? Attention::sparse : Attention::dense, type, 1, {.format = cache_format(o.cache)});
  auto of_key = [](const at::Tensor& keys) { return keys.defined() ? double(keys.nbytes()) / 64 : 0.0; };
  const auto& layer = page.layers[0];
  Estimate e{};
  e.weights = packed_bytes(config, packing);
  e.cache = pages_for(o.context) * page.bytes();
  e.memory = available_memory();
  double embedding = double(config.vocab_size * config.hidden_size), one = type == at::kBFloat16 ? 2 : 4;
  auto count = count_parameters(config);  // packed, an MTP layer shares the embedding and the head
  double matrices = double(count.total) - embedding * (config.tie_word_embeddings ? 0 : 1);
  if (count.mtp > 0) matrices += double(count.mtp) - 2 * embedding;
  StoredBytes bytes{(double(e.weights) - embedding * one) / matrices,
                    of_key(layer.kv_SC) + of_key(layer.k_SHE) + of_key(layer.v_SHV),
                    sparse && config.tied_index() ? stored_bytes(config, Form::sparse, one).index_key : of_key(layer.index_PDK)};
  Limits limits;
  e.flops = limits.flops(), e.bandwidth = limits.bandwidth();
  auto rate = [&](int64_t before, int64_t rows) -> Rate {
    auto cost = step_cost(config, sparse ? Form::sparse : Form::dense, before, rows, bytes);
    double least = limits.best(cost.flops, cost.bytes);
    return {double(rows) / (least / kReached + double(config.num_hidden_layers) * kLayerSeconds), double(rows) / least};
  };
  constexpr int64_t kChunk = 256;
  e.prefill = rate(0, kChunk), e.prefill_deep = rate(o.context, kChunk), e.decode = rate(0, 1),
  e.decode_deep = rate(o.context, 1);
  return e;
}

Json estimate_json(const Estimate& e, const Options& o) {
  auto rates = [](const Rate& rate) { return Json{{"expected", rate.expected}, {"at_most", rate.at_most}}; };
  return {{"context", o.context},
          {"weights_format", o.weights_format},
          {"dtype", o.dtype},
          {"cache", o.cache},
          {"weight_bytes", e.weights},
          {"cache_bytes", e.cache},
          {"memory_bytes", e.memory},
          {"peak_flops", e.flops},
          {"peak_bandwidth", e.bandwidth},
          {"tokens_per_second",
           {{"prefill", rates(e.prefill)},
            {"prefill_at_context", rates(e.prefill_deep)},
            {"decode", rates(e.decode)},
            {"decode_at_context", rates(e.decode_deep)}}}};
}

void print_estimate(const Estimate& e, const Options& o) {
  auto bytes = [](double count) { return human_count(count) + "B"; };
  std::printf("\nrun here: weights %s, activations %s, cache %s: %s of weights, %s of cache for %lld tokens; %s of memory free\n",
              o.weights_format.c_str(), o.dtype.c_str(), o.cache.c_str(), bytes(double(e.weights)).c_str(),
              bytes(double(e.cache)).c_str(), static_cast<long long>(o.context), bytes(double(e.memory)).c_str());
  if (e.weights + e.cache > e.memory)
    std::printf("larger than memory: packed (fulgur convert --packed) its experts are read from disk as they are needed\n");
  std::printf("%d threads: %.0f GFLOP/s, %.1f GB/s measured\n\n%-24s %12s %12s\n", threads(), e.flops / 1e9, e.bandwidth / 1e9,
              "tokens/s", "expected", "at most");
  auto row = [](const std::string& what, const Rate& rate) {
    std::printf("%-24s %12.3g %12.3g\n", what.c_str(), rate.expected, rate.at_most);
  };
  auto behind = cat(" behind ", o.context);
  row("prefill", e.prefill), row("prefill" + behind, e.prefill_deep), row("decoding", e.decode),
      row("decoding" + behind, e.decode_deep);
}

void inspect_command(Options o, const CLI::App& command, bool json) {
  auto folder = find_model(o.model);
  ModelFiles files(folder);
  auto config = files.config();
  follow_packing(command, files.packing(), &o.attention, o.dtype, o.weights_format);
  Json out = {{"model", folder.string()}, {"config", config_json(config)}, {"cost", cost_json(config)}};
  std::optional<Estimate> here;
  if (o.context > 0) here = estimate(config, o), out["here"] = estimate_json(*here, o);
  if (json) return void(std::printf("%s\n", out.dump().c_str()));
  std::printf("%s\n", folder.c_str());
  for (const auto& [key, value] : out["config"].items()) std::printf("  %-28s %s\n", key.c_str(), value.dump().c_str());
  auto parameters = count_parameters(config);
  std::printf("\nparameters  %s, of which a token uses %s; indexers %s, MTP layer %s\n",
              human_count(double(parameters.total)).c_str(), human_count(double(parameters.active)).c_str(),
              human_count(double(parameters.indexers)).c_str(), human_count(double(parameters.mtp)).c_str());
  bool sparse = config.has_indexer();
  std::printf("\n%-10s %14s %14s", "position", "dense FLOP", "dense cache B");
  std::printf(sparse ? " %14s %14s\n" : "\n", "sparse FLOP", "sparse cache B");
  for (int64_t position = 1024; position <= 131072; position *= 2) {
    auto dense = token_cost(config, Form::dense, position, 4);
    std::printf("%-10lld %14s %14s", static_cast<long long>(position), human_count(dense.flops).c_str(),
                human_count(dense.cache_bytes).c_str());
    if (sparse) {
      auto cost = token_cost(config, Form::sparse, position, 4);
      std::printf(" %14s %14s", human_count(cost.flops).c_str(), human_count(cost.cache_bytes).c_str());
    }
    std::printf("\n");
  }
  if (here) print_estimate(*here, o);
}

// One row of the plan's table: a figure for each stage in MB, "-" where it has none.
template <class Figure>
void print_plan_row(const std::string& what, const std::string& part, const std::vector<StepPlan>& plans, const Figure& figure) {
  std::printf("%-20s %-12s", what.c_str(), part.c_str());
  for (const auto& plan : plans) {
    int64_t bytes = figure(plan);
    if (bytes == 0) std::printf("%12s", "-");
    else std::printf("%12.2f", double(bytes) / 1e6);
  }
  std::printf("\n");
}

// What layers first to last - 1, which are alike, keep.
void print_kept(const std::vector<StepPlan>& plans, size_t first, size_t last) {
  auto name = plans[0].layers[first].name;
  if (last - first > 1) name = cat("layers ", first, " to ", last - 1, ", each");
  auto row = [&](const char* part, int64_t LayerKept::*bytes) {
    print_plan_row(name, part, plans, [&](const StepPlan& plan) { return plan.layers[first].*bytes; });
    name.clear();
  };
  row("attention", &LayerKept::attention), row("indexer", &LayerKept::indexer);
  row("experts, MLP", &LayerKept::mlp), row("norms", &LayerKept::norms);
}

// The largest workspace of each kind of point: "experts, layer 3" is of the kind "experts".
void print_workspaces(const std::vector<StepPlan>& plans) {
  auto kind = [](const StepPoint& point) { return point.name.substr(0, point.name.find(',')); };
  std::vector<std::string> kinds;
  for (const auto& plan : plans)
    for (const auto& point : plan.points)
      if (std::find(kinds.begin(), kinds.end(), kind(point)) == kinds.end()) kinds.push_back(kind(point));
  for (const auto& name : kinds)
    print_plan_row(name, "workspace", plans, [&](const StepPlan& plan) {
      int64_t most = 0;
      for (const auto& point : plan.points)
        if (kind(point) == name) most = std::max(most, point.workspace);
      return most;
    });
}

void print_plans(const std::vector<StepPlan>& plans) {
  print_plan_row("weights", "", plans, [](const StepPlan& plan) { return plan.weights; });
  print_plan_row("optimiser", "", plans, [](const StepPlan& plan) { return plan.optimiser; });
  print_plan_row("gradient sums", "", plans, [](const StepPlan& plan) { return plan.sums; });
  print_plan_row("batch", "", plans, [](const StepPlan& plan) { return plan.batch; });
  std::printf("\nkept for the backward pass\n");
  for (size_t first = 0, last; first < plans[0].layers.size(); first = last) {
    const auto& layers = plans[0].layers;  // only their MLPs differ, and the MTP layer stands alone
    last = first + 1;
    while (last < layers.size() && layers[last].mlp == layers[first].mlp && layers[last].name != "MTP layer") ++last;
    print_kept(plans, first, last);
  }
  print_plan_row("embedding, heads", "", plans, [](const StepPlan& plan) { return plan.ends; });
  std::printf("\nfor a moment\n");
  print_workspaces(plans);
  std::printf("\nat the peak\n");
  print_plan_row("", "activations", plans, [](const StepPlan& plan) { return plan.highest().kept; });
  print_plan_row("", "gradients", plans, [](const StepPlan& plan) { return plan.highest().gradients; });
  print_plan_row("", "workspace", plans, [](const StepPlan& plan) { return plan.highest().workspace; });
  print_plan_row("peak", "", plans, [](const StepPlan& plan) { return plan.peak(); });
}

void plan_command(const Options& o, bool json) {
  Recipe recipe = read_recipe(o.plan);
  auto config = model_config(recipe);
  std::vector<StepPlan> plans;
  std::vector<StageConfig> stages;
  Json out = {{"recipe", o.plan}, {"parameters", count_parameters(config).total}, {"stages", Json::object()}};
  for (std::string name : {"pretrain", "warmup", "sparse"}) {
    if (name != "pretrain" && !config.has_indexer()) continue;
    auto stage = effective_stage(recipe, name);
    if (stage.tokens == 0) stage.tokens = stage.batch_tokens;  // a stage the recipe leaves out: one step
    validate(stage);
    stages.push_back(stage), plans.push_back(plan_step(config, stage));
    Json& said = out["stages"][name] = plan_json(plans.back());
    said["batch_tokens"] = stage.batch_tokens, said["micro_tokens"] = stage.micro_tokens, said["dtype"] = stage.dtype;
  }
  if (json) return void(std::printf("%s\n", out.dump().c_str()));
  std::printf("%s: %s parameters\n\n%-33s", o.plan.c_str(), human_count(double(count_parameters(config).total)).c_str(), "MB");
  for (const auto& stage : stages) std::printf("%12s", stage_name(stage.kind));
  std::printf("\n");
  print_plans(plans);
  for (size_t i = 0; i < plans.size(); ++i)
    std::printf("%s%s: %lld tokens a step, %lld a pass, %s; peak at: %s\n", i ? "" : "\n", stage_name(stages[i].kind),
                static_cast<long long>(stages[i].batch_tokens), static_cast<long long>(stages[i].micro_tokens),
                stages[i].dtype.c_str(), plans[i].highest().name.c_str());
}

}  // namespace

void add_inspect(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "inspect", "What a model is, and what a token costs at a position; or what memory a recipe's training steps need");
  command->add_option("model", o->model, "Model folder or run directory");
  command->add_option("--plan", o->plan, "Recipe: peak bytes of tensors in a training step of each stage, without a run");
  command->add_option("--context", o->context, "What running it here takes with so many tokens, and how fast it will be")
      ->check(CLI::PositiveNumber);
  command->add_option("--attention", o->attention, "With --context: form of attention")
      ->capture_default_str()
      ->check(CLI::IsMember({"sparse", "dense"}));
  command->add_option("--dtype", o->dtype, "With --context: activations")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  add_formats(*command, o->weights_format, o->cache);
  command->footer(
      "Example:\n  fulgur inspect runs/speedrun\n  fulgur inspect runs/speedrun --context 512 --weights-format int8\n  fulgur "
      "inspect --plan recipes/speedrun.toml");
  command->callback([=, &common] {
    if (o->model.empty() == o->plan.empty())
      throw UsageError(cat("[usage] inspect: expected a model or --plan RECIPE, got ", o->plan.empty() ? "neither" : "both",
                           "\n  hint: fulgur inspect --help"));
    if (o->plan.empty()) inspect_command(*o, *command, common.json);
    else plan_command(*o, common.json);
  });
}

}  // namespace fulgur::cli
