#include "fulgur/train/trainer.h"

#include <ATen/Version.h>
#include <torch/version.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>

#include "fulgur/base/error.h"
#include "fulgur/base/progress.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/cost.h"
#include "fulgur/model/probe.h"
#include "fulgur/ops/isa.h"
#include "fulgur/ops/peaks.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/conversations.h"
#include "fulgur/train/diagnose.h"
#include "fulgur/train/metrics.h"
#include "fulgur/train/resume.h"
#include "fulgur/train/step.h"
#include "fulgur/train/step_guard.h"
#include "fulgur/train/stragglers.h"
#include "fulgur/train/watchdog.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kMostBadSteps = 10;  // skipped in a row

class StageRun {
 public:
  StageRun(const StageConfig& config, const StageInputs& inputs, ProcessGroup& group)
      : config_(config),
        inputs_(inputs),
        group_(group),
        name_(stage_name(config.kind)),
        start_(find_start(inputs.run, name_, inputs.model, group)),
        shards_(inputs.data, "train"),
        valid_(inputs.data, "valid"),
        batches_(shards_, config.context, config.seed),
        valid_batches_(valid_, config.context, config.seed),
        tokenizer_(inputs.data / "tokenizer.json"),
        model_(load_model(start_.folder, /*share_mtp=*/true, start_.resumed ? Json::object() : inputs.config)),
        optimizer_(model_.weights(), config),
        guard_(config),
        text_guard_(config) {
    check_inputs();
    if (config.kind == StageKind::sft) read_messages();
    if (!inputs.lead_in.empty()) read_lead_in();
    if (start_.resumed) resume();
  }

  StageResult run();

 private:
  void check_inputs() const;
  void read_messages();
  void read_lead_in();
  Json facts() const;
  void resume();
  std::vector<TrainBatch> parts(int64_t step);
  BatchSource& source() { return mixture_ ? static_cast<BatchSource&>(*mixture_) : batches_; }
  void train_step(Metrics* metrics, Progress* progress);
  bool take_step(const StepSums& sums, const Optimizer::Norms& norms, const std::vector<TrainBatch>& parts, Json& line);
  Json metrics_line(const StepSums& sums, const Optimizer::Norms& norms) const;
  Json probe();
  double valid_loss();
  void save(Metrics* metrics);

  StageConfig config_;
  StageInputs inputs_;
  ProcessGroup& group_;
  std::string name_;
  Start start_;
  fs::path checkpoint_;  // the newest good one
  TokenShards shards_, valid_;
  Batches batches_, valid_batches_;
  std::unique_ptr<Mixture> mixture_;  // of text and sft's conversations, or of it and pretrain's lead-in
  Json mixed_in_ = Json::object();    // what identifies the other part
  Tokenizer tokenizer_;
  Transformer model_;
  Optimizer optimizer_;
  StepGuard guard_, text_guard_;  // the second of a mixture's text, whose losses are its own
  Stragglers stragglers_;
  double peak_flops_ = 0;  // the limit of share_of_peak, measured at the start of every call
  int64_t step_ = 0;       // steps done
  std::optional<double> valid_loss_;
};

void StageRun::check_inputs() const {
  FULGUR_CHECK(model_.config().vocab_size >= tokenizer_.vocab_size(), "[train] expected a model of at least ",
               tokenizer_.vocab_size(), " tokens, got ", model_.config().vocab_size);
  FULGUR_CHECK(config_.kind == StageKind::pretrain || model_.config().has_indexer(), "[train] stage ", name_,
               ": expected a model with an indexer, got ", model_.config().model_type);
  auto own = start_.folder / "tokenizer.json";
  FULGUR_CHECK(!fs::exists(own) || sum_file(own) == sum_file(inputs_.data / "tokenizer.json"), "[train] ",
               (inputs_.data / "tokenizer.json").string(), ": expected the tokenizer of the model, ", own.string(),
               ", got another one\n  hint: pack the text with `fulgur data pack --tokenizer ", own.string(), "`");
  int64_t parts = config_.batch_tokens / config_.micro_tokens;
  FULGUR_CHECK(parts % group_.size() == 0, "[parallel] batch_tokens / micro_tokens: expected a multiple of ", group_.size(),
               " ranks, got ", parts, "\n  hint: --micro-tokens ", config_.batch_tokens / group_.size());
}

void StageRun::read_messages() {
  auto samples = read_conversations(inputs_.messages, tokenizer_, config_.context);
  int64_t longest = 0, prompt = 0, tokens = 0, learned = 0;
  for (const auto& sample : samples) {
    longest = std::max(longest, int64_t(sample.tokens.size())), prompt = std::max(prompt, sample.prompt);
    tokens += int64_t(sample.tokens.size()), learned += std::count(sample.learned.begin(), sample.learned.end(), true);
  }
  if (group_.leads())
    std::fprintf(stderr, "sft       %zu samples: %lld tokens on average, %lld at most, prompts %lld at most, %.0f %% learned\n",
                 samples.size(), static_cast<long long>(tokens) / static_cast<long long>(samples.size()),
                 static_cast<long long>(longest), static_cast<long long>(prompt), 100.0 * double(learned) / double(tokens));
  mixture_ = std::make_unique<Conversations>(std::move(samples), batches_, config_);
  mixed_in_["messages"] = sum_file(inputs_.messages).crc32;
}

void StageRun::read_lead_in() {
  auto lead_in =
      std::make_unique<LeadIn>(inputs_.lead_in, batches_, config_.context, config_.seed, config_.batch_tokens / config_.context);
  mixed_in_["lead_in"] = lead_in->checksum();
  mixture_ = std::move(lead_in);
}

// Everything the result is a function of, but the step.
Json StageRun::facts() const {
  Json stage = Json::object();
  visit_stage(config_, [&](const char* key, const auto& value) {
    if (changes_result(key)) stage[key] = value;
  });
  Json out = {
      {"stage", stage}, {"data", shards_.checksum()}, {"model", config_json(model_.config())}, {"numeric_path", numeric_path()}};
  out.update(mixed_in_);
  return out;
}

void StageRun::resume() {
  auto check = [&](const std::string& key, const Json& now, const Json& then) {
    check_fact(start_.folder, key, now, then, inputs_.force, group_.leads());
  };
  auto state = read_checkpoint(start_.folder);
  Json now = facts().flatten(), then = state.facts.flatten();
  for (const auto& [key, value] : now.items()) check(key, value, then.contains(key) ? then[key] : Json());
  Json own = config_json(model_.config()), wanted = own;
  for (const auto& [key, value] : inputs_.config.items()) wanted[key] = value;
  wanted = config_json(parse_config(wanted, "this run's model")).flatten(), own = own.flatten();
  for (const auto& [key, value] : wanted.items()) check("/model" + key, value, own.contains(key) ? own[key] : Json());
  try {
    int64_t sequence = state.progress.at("sequence").get<int64_t>(),
            expected = state.step * config_.batch_tokens / config_.context;
    FULGUR_CHECK(sequence == expected || inputs_.force, "[checkpoint] ", start_.folder.string(), ": progress.sequence: expected ",
                 expected, " at step ", state.step, ", got ", sequence);
    guard_.load_state(state.progress.at("guard"));
    if (mixture_) text_guard_.load_state(state.progress.at("text_guard"));
  } catch (const Json::exception& error) {
    throw InputError(
        cat("[checkpoint] ", start_.folder.string(), ": progress: expected sequence and guard, got: ", error.what()));
  }
  optimizer_.load_state(read_safetensors(start_.folder / "optimizer.safetensors"));
  step_ = state.step;
  checkpoint_ = start_.folder;
}

// This rank's share of a step: the parts of all ranks in order are those of a single process.
std::vector<TrainBatch> StageRun::parts(int64_t step) {
  int64_t sequences = config_.batch_tokens / config_.context, micro = config_.micro_tokens / config_.context;
  int64_t share = sequences / group_.size();
  std::vector<TrainBatch> parts;
  for (int64_t i = group_.rank() * share; i < (group_.rank() + 1) * share; i += micro)
    parts.push_back(source().get(step * sequences + i, micro));
  return parts;
}

Json StageRun::metrics_line(const StepSums& sums, const Optimizer::Norms& norms) const {
  Json line = {{"stage", name_},
               {"step", step_},
               {"tokens", (step_ + 1) * config_.batch_tokens},
               {"lr", config_.lr * schedule_share(config_, step_)}};
  if (mixture_) line["of"] = mixture_->is_text(step_) ? "text" : mixture_->other();
  if (config_.kind != StageKind::warmup) {
    line["loss"] = shown_loss(config_, sums);
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
    double total = 0;
    for (double tokens : counts) total += tokens;
    Json shares = Json::array();
    for (double tokens : counts) shares.push_back(tokens / total);
    load.push_back(shares);
  }
  line["expert_load"] = load;
  return line;
}

// Recall and attention mass of one validation sequence, the same every time.
Json StageRun::probe() {
  auto quality = probe_indexer(model_, valid_batches_.get(0, 1).batch, {});
  Json recall = Json::array(), mass = Json::array(), window_recall = Json::array(), window_mass = Json::array();
  for (const auto& q : quality) {
    recall.push_back(q.recall), mass.push_back(q.mass);
    window_recall.push_back(q.window_recall), window_mass.push_back(q.window_mass);
  }
  return {{"recall", recall}, {"mass", mass}, {"window_recall", window_recall}, {"window_mass", window_mass}};
}

double StageRun::valid_loss() {
  int64_t count = std::min(config_.valid_sequences, valid_batches_.sequences_per_epoch());
  int64_t micro = config_.micro_tokens / config_.context;
  std::vector<TrainBatch> parts;
  for (int64_t i = 0; i < count; i += micro) parts.push_back(valid_batches_.get(i, std::min(micro, count - i)));
  return shown_loss(config_, measure_losses(model_, config_, parts, tokenizer_));
}

// Takes the step, or says in `line` why not; throws where a bad step stops the run.
bool StageRun::take_step(const StepSums& sums, const Optimizer::Norms& norms, const std::vector<TrainBatch>& parts, Json& line) {
  auto& guard = mixture_ && mixture_->is_text(step_) ? text_guard_ : guard_;
  auto bad = guard.judge(shown_loss(config_, sums), norms);
  if (bad.empty()) {
    optimizer_.step(step_, norms);
    balance_experts(model_.weights(), config_, sums);
    return true;
  }
  auto where = group_.gather(diagnose_step(model_, config_, parts, tokenizer_, optimizer_));
  optimizer_.discard();
  std::string text = cat("[train] stage ", name_, " step ", step_, ": ", bad);
  for (int r = 0; r < group_.size(); ++r)
    if (r == 0 || where[r] != where[0]) text += cat("\n  ", group_.size() > 1 ? group_.name(r) + ": " : "", where[r]);
  if (config_.on_bad_step == "stop" || guard.bad_in_a_row() > kMostBadSteps)
    throw InputError(text, cat("the last good checkpoint is ", checkpoint_.empty() ? "none" : checkpoint_.string(),
                               "; --resume with --on-bad-step skip leaves such steps out, --init CKPT begins anew from it"));
  line["skipped"] = text;
  if (group_.leads()) std::fprintf(stderr, "\n%s\n  skipped\n", text.c_str());
  return false;
}

void StageRun::save(Metrics* metrics) {
  check_agreement(model_.weights(), step_, group_);
  checkpoint_ = checkpoint_folder(inputs_.run, name_, step_);
  if (group_.leads()) {
    int64_t sequence = step_ * config_.batch_tokens / config_.context, epoch = source().epoch(sequence);
    Json progress = {{"sequence", sequence},
                     {"epoch", epoch},
                     {"streams", Json::array({{{"name", cat("batches.epoch.", epoch)}, {"seed", config_.seed}, {"counter", 0}}})},
                     {"guard", guard_.state()}};
    if (mixture_) progress["text_guard"] = text_guard_.state();
    metrics->sync();
    save_checkpoint(checkpoint_, model_, &optimizer_, inputs_.data / "tokenizer.json",
                    {name_, step_, facts(), progress, std::exchange(valid_loss_, {})});
    prune_checkpoints(inputs_.run, name_, config_.keep_last, config_.keep_best);
  }
  group_.barrier();
}

void StageRun::train_step(Metrics* metrics, Progress* progress) {
  using Clock = std::chrono::steady_clock;
  auto begin = Clock::now();
  auto own = parts(step_);
  StepSums sums = accumulate_gradients(model_, config_, own, tokenizer_, group_);
  auto norms = optimizer_.norms();
  Json line = metrics_line(sums, norms);
  take_step(sums, norms, own, line);
  double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  auto slow = stragglers_.step(sums.rank_seconds);
  bool last = step_ + 1 == stage_steps(config_), saved = last || (step_ + 1) % config_.checkpoint_every == 0;
  if (group_.leads()) {
    if (model_.config().has_indexer() && config_.probe_every > 0 && (step_ % config_.probe_every == 0 || last))
      line["probe"] = probe();
    if (saved && config_.valid_sequences > 0) line["valid_loss"] = *(valid_loss_ = valid_loss());
    double rate = double(config_.batch_tokens) / seconds;
    line["seconds"] = seconds;
    line["tokens_per_second"] = rate;
    line["share_of_peak"] = rate *
                            train_flops(model_.config(), TrainForm(std::min(config_.kind, StageKind::sparse)), config_.context) /
                            (peak_flops_ * group_.size());
    if (group_.size() > 1) line["rank_seconds"] = sums.rank_seconds;
    metrics->write(line);
    char detail[96];
    if (config_.kind == StageKind::warmup) std::snprintf(detail, sizeof detail, "KL %.4f", shown_loss(config_, sums));
    else
      std::snprintf(detail, sizeof detail, "loss %.3f  bits/byte %.3f", shown_loss(config_, sums),
                    line["bits_per_byte"].get<double>());
    progress->update((step_ + 1) * config_.batch_tokens, detail);
    if (slow >= 0)
      std::fprintf(stderr, "\n[parallel] %s is slow: %.2f s of work in this step, the others' median is %.2f s\n",
                   group_.name(slow).c_str(), sums.rank_seconds[slow], stragglers_.median());
  }
  ++step_;
  if (saved) save(metrics);
}

StageResult StageRun::run() {
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  std::optional<Metrics> metrics;
  std::optional<Progress> progress;
  int64_t steps = stage_steps(config_), first = step_;
  if (group_.leads()) {
    peak_flops_ = ops::peak_flops(0.2);
    metrics.emplace(inputs_.run / "metrics.jsonl", name_, step_);
    progress.emplace(name_, "tok", steps * config_.batch_tokens, step_ * config_.batch_tokens);
  }
  Watchdog watchdog(config_.hang_seconds, [&](const std::string& doing, double seconds) {
    std::fprintf(stderr, "\n[train] %s: expected it to end within %.0f s, got no end\n  hint: --resume goes on from %s\n",
                 doing.c_str(), seconds, checkpoint_.empty() ? "the start" : checkpoint_.c_str());
    _exit(1);
  });
  while (step_ < steps && !stop_wanted(inputs_.stop && *inputs_.stop, group_)) {
    watchdog.alive(cat(group_.size() > 1 ? group_.name(group_.rank()) + ", " : "", "stage ", name_, " step ", step_));
    train_step(metrics ? &*metrics : nullptr, progress ? &*progress : nullptr);
  }
  if (step_ < steps && step_ > first && step_ % config_.checkpoint_every != 0) save(metrics ? &*metrics : nullptr);
  StageResult result{checkpoint_, step_, step_ >= steps, std::chrono::duration<double>(Clock::now() - start).count(), 0};
  result.tokens_per_second = double((step_ - first) * config_.batch_tokens) / std::max(1e-9, result.seconds);
  return result;
}

}  // namespace

Json numeric_path() { return {{"isa", isa_name(isa())}, {"torch", TORCH_VERSION}, {"torch_cpu", at::get_cpu_capability()}}; }

StageResult train_stage(const StageConfig& config, const StageInputs& inputs, ProcessGroup& group) {
  validate(config);
  return StageRun(config, inputs, group).run();
}

}  // namespace fulgur
