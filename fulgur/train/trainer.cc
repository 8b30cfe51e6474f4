#include "fulgur/train/trainer.h"

#include <ATen/TensorOperators.h>

#include <chrono>
#include <cmath>
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/threads.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/cost.h"
#include "fulgur/model/probe.h"
#include "fulgur/ops/isa.h"
#include "fulgur/ops/peaks.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/metrics.h"
#include "fulgur/train/step.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

class StageRun {
 public:
  StageRun(const StageConfig& config, const StageInputs& inputs)
      : config_(config),
        inputs_(inputs),
        name_(stage_name(config.kind)),
        shards_(inputs.data, "train"),
        valid_(inputs.data, "valid"),
        batches_(shards_, config.context, config.seed),
        probe_batches_(valid_, config.context, config.seed),
        tokenizer_(inputs.data / "tokenizer.json"),
        model_(load_model(start_folder())),
        optimizer_(model_.weights(), config) {
    FULGUR_CHECK(model_.config().vocab_size >= tokenizer_.vocab_size(), "[train] expected a model of at least ",
                 tokenizer_.vocab_size(), " tokens, got ", model_.config().vocab_size);
    FULGUR_CHECK(config.kind == StageKind::pretrain || model_.config().has_indexer(), "[train] stage ", name_,
                 ": expected a deepseek_v32 model (with an indexer), got ", model_.config().model_type);
    if (resumed_) resume();
  }

  StageResult run();

 private:
  fs::path start_folder() {
    resumed_ = newest_checkpoint(inputs_.run, name_);
    return resumed_ ? *resumed_ : find_model(inputs_.model);
  }
  Json facts() const;
  void resume();
  std::vector<TrainBatch> batches(int64_t step);
  Json metrics_line(int64_t step, const StepSums& sums, const Optimizer::Norms& norms, double seconds) const;
  Json probe();
  fs::path save();

  StageConfig config_;
  StageInputs inputs_;
  std::string name_;
  std::optional<fs::path> resumed_;
  TokenShards shards_, valid_;
  Batches batches_, probe_batches_;
  Tokenizer tokenizer_;
  Transformer model_;
  Optimizer optimizer_;
  double peak_flops_ = ops::peak_flops(0.2);  // the limit of share_of_peak, measured at the start of every call
  int64_t step_ = 0;
};

// Everything the result is a function of, but the step.
Json StageRun::facts() const {
  Json stage = Json::object();
  visit_stage(config_, [&](const char* key, const auto& value) { stage[key] = value; });
  return {{"stage", stage}, {"data", shards_.checksum()}, {"isa", isa_name(isa())}};
}

void StageRun::resume() {
  auto state = load_state(*resumed_);
  Json now = facts().flatten(), then = state.facts.flatten();
  for (const auto& [key, value] : now.items()) {
    bool harmless = key == "/stage/checkpoint_every" || key == "/stage/probe_every";
    FULGUR_CHECK(harmless || (then.contains(key) && then[key] == value), "[checkpoint] ", resumed_->string(), ": ", key,
                 ": expected ", value.dump(), " as in this run, got ", then.contains(key) ? then[key].dump() : "nothing",
                 "\n  hint: go on with the same settings and data, or give another --out");
  }
  optimizer_.load_state(read_safetensors(*resumed_ / "optimizer.safetensors"));
  step_ = state.step;
}

std::vector<TrainBatch> StageRun::batches(int64_t step) {
  int64_t sequences = config_.batch_tokens / config_.context, micro = config_.micro_tokens / config_.context;
  std::vector<TrainBatch> parts;
  for (int64_t i = 0; i < sequences; i += micro) parts.push_back(batches_.get(step * sequences + i, micro));
  return parts;
}

Json StageRun::metrics_line(int64_t step, const StepSums& sums, const Optimizer::Norms& norms, double seconds) const {
  double rate = double(config_.batch_tokens) / seconds;
  Json line = {{"stage", name_},
               {"step", step},
               {"tokens", (step + 1) * config_.batch_tokens},
               {"lr", config_.lr * schedule_share(config_, step)},
               {"seconds", seconds},
               {"tokens_per_second", rate},
               {"share_of_peak", rate * train_flops(model_.config(), TrainForm(config_.kind), config_.context) / peak_flops_}};
  if (config_.kind != StageKind::warmup) {
    line["loss"] = sums.nll / double(sums.targets);
    line["bits_per_byte"] = sums.nll / std::log(2.0) / double(std::max<int64_t>(1, sums.text_bytes));
    line["mtp_loss"] = sums.mtp_nll / double(std::max<int64_t>(1, sums.mtp_targets));
    line["balance"] = sums.balance;
    line["grad_norm"] = norms.model;
  }
  if (config_.kind != StageKind::pretrain) {
    line["kl"] = sums.kl;
    line["indexer_grad_norm"] = norms.indexer;
  }
  Json load = Json::array();
  for (const auto& counts : sums.load) {
    Json shares = Json::array();
    if (counts.defined())
      for (int64_t e = 0; e < counts.size(0); ++e) shares.push_back(counts[e].item<double>() / counts.sum().item<double>());
    load.push_back(shares);
  }
  line["expert_load"] = load;
  return line;
}

// Recall and attention mass of one validation sequence, the same every time.
Json StageRun::probe() {
  auto quality = probe_indexer(model_, probe_batches_.get(0, 1).batch, {});
  Json recall = Json::array(), mass = Json::array(), window_recall = Json::array(), window_mass = Json::array();
  for (const auto& q : quality) {
    recall.push_back(q.recall), mass.push_back(q.mass);
    window_recall.push_back(q.window_recall), window_mass.push_back(q.window_mass);
  }
  return {{"recall", recall}, {"mass", mass}, {"window_recall", window_recall}, {"window_mass", window_mass}};
}

fs::path StageRun::save() {
  char name[64];
  std::snprintf(name, sizeof name, "%s-%08lld", name_.c_str(), static_cast<long long>(step_));
  auto folder = inputs_.run / "checkpoints" / name;
  save_checkpoint(folder, model_, &optimizer_, inputs_.data / "tokenizer.json", {name_, step_, facts()});
  prune_checkpoints(inputs_.run, name_, 2);
  return folder;
}

StageResult StageRun::run() {
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  fs::create_directories(inputs_.run / "checkpoints");
  Metrics metrics(inputs_.run / "metrics.jsonl", name_, step_);
  int64_t steps = stage_steps(config_), first = step_;
  StageResult result{resumed_.value_or(""), step_, step_ >= steps};
  Progress progress(name_, "tok", steps * config_.batch_tokens, step_ * config_.batch_tokens);
  while (step_ < steps && !(inputs_.stop && *inputs_.stop)) {
    auto begin = Clock::now();
    StepSums sums = accumulate_gradients(model_, config_, batches(step_), tokenizer_);
    auto norms = optimizer_.step(step_);
    balance_experts(model_.weights(), config_, sums);
    double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    Json line = metrics_line(step_, sums, norms, seconds);
    double shown = config_.kind == StageKind::warmup ? 0 : line["loss"].get<double>();
    for (double kl : sums.kl) shown += config_.kind == StageKind::warmup ? kl : 0;
    FULGUR_CHECK(std::isfinite(shown), "[train] stage ", name_, " step ", step_, ": expected a finite loss, got ", shown,
                 "\n  hint: lower the learning rate; the last good checkpoint is ", result.checkpoint.string());
    bool last = step_ + 1 == steps;
    if (model_.config().has_indexer() && config_.probe_every > 0 && (step_ % config_.probe_every == 0 || last))
      line["probe"] = probe();
    metrics.write(line);
    ++step_;
    char detail[96];
    if (config_.kind == StageKind::warmup) std::snprintf(detail, sizeof detail, "KL %.4f", shown);
    else std::snprintf(detail, sizeof detail, "loss %.3f  bits/byte %.3f", shown, line["bits_per_byte"].get<double>());
    progress.update(step_ * config_.batch_tokens, detail);
    if (last || step_ % config_.checkpoint_every == 0) result.checkpoint = save();
  }
  if (step_ < steps && step_ > first && step_ % config_.checkpoint_every != 0) result.checkpoint = save();
  result.step = step_, result.finished = step_ >= steps;
  result.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  result.tokens_per_second = double((step_ - first) * config_.batch_tokens) / std::max(1e-9, result.seconds);
  return result;
}

}  // namespace

StageResult train_stage(const StageConfig& config, const StageInputs& inputs) {
  validate(config);
  return StageRun(config, inputs).run();
}

}  // namespace fulgur
