#include "fulgur/rl/trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <optional>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/interval.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/random.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/probe.h"
#include "fulgur/rl/collector.h"
#include "fulgur/rl/update.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/metrics.h"
#include "fulgur/train/optimizer.h"
#include "fulgur/train/resume.h"
#include "fulgur/train/trainer.h"
#include "fulgur/train/watchdog.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

constexpr const char *kStage = "rl", *kEvaluation = "rl-eval";  // of lines in metrics.jsonl

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

double share(double part, double whole) { return whole > 0 ? part / whole : 0; }

class RlRun {
 public:
  RlRun(const RlConfig& config, const RlInputs& inputs, ProcessGroup& group)
      : config_(config),
        inputs_(inputs),
        group_(group),
        start_(find_start(inputs.run, kStage, inputs.model, group)),
        tokenizer_path_(start_.folder / "tokenizer.json"),
        tokenizer_(tokenizer_path_),
        model_(load_model(start_.folder)),
        optimizer_(model_.weights(), optimiser_config(config)),
        collector_(config_, inputs.run, tokenizer_, group) {
    FULGUR_CHECK(model_.config().has_indexer(), "[rl] expected a model with an indexer, got ", model_.config().model_type);
    if (config.objective.kl_coefficient > 0) reference_.emplace(load_model(find_model(inputs.model)));
    if (start_.resumed) resume();
  }

  RlResult run();

 private:
  Json facts() const;
  void resume();
  std::vector<std::vector<UpdatePart>> parts(const Rollouts& rollouts) const;
  void remember_proximal(std::vector<Member>& members) const;
  ChangedChoices changed_by_now(const std::vector<UpdatePart>& parts) const;
  void train_step(Metrics* metrics, Progress* progress);
  Json metrics_line(const RolloutSums& r, const UpdateSums& u) const;
  void save(Metrics* metrics);
  Json evaluate();
  Json probe(const std::vector<Member>& episodes) const;

  RlConfig config_;
  RlInputs inputs_;
  ProcessGroup& group_;
  Start start_;
  fs::path tokenizer_path_, checkpoint_;
  Tokenizer tokenizer_;
  Transformer model_;
  std::optional<Transformer> reference_;
  Optimizer optimizer_;
  Collector collector_;
  int64_t step_ = 0;
};

// Everything the result is a function of, but the step.
Json RlRun::facts() const {
  Json rl = Json::object();
  visit_rl(config_, [&](const char* key, const auto& value) {
    if (rl_changes_result(key)) rl[key] = value;
  });
  return {{"rl", rl}, {"model", config_json(model_.config())}, {"numeric_path", numeric_path()}};
}

void RlRun::resume() {
  auto state = read_checkpoint(start_.folder);
  Json now = facts().flatten(), then = state.facts.flatten();
  for (const auto& [key, value] : now.items())
    check_fact(start_.folder, key, value, then.contains(key) ? then[key] : Json(), inputs_.force, group_.leads());
  optimizer_.load_state(read_safetensors(start_.folder / "optimizer.safetensors"));
  step_ = state.step, checkpoint_ = start_.folder;
  collector_.load(start_.folder, state.progress, model_.config());
}

// The groups each update trains on, with advantages. A dropped group stays as an empty part, so that ranks keep step.
std::vector<std::vector<UpdatePart>> RlRun::parts(const Rollouts& rollouts) const {
  int64_t a_update = config_.prompts / group_.size() / config_.updates;
  std::vector<std::vector<UpdatePart>> out(config_.updates, std::vector<UpdatePart>(a_update));
  for (size_t i = 0; i < rollouts.members.size(); ++i) {
    if (!rollouts.advantage[i]) continue;
    int64_t group = int64_t(i) / config_.group;
    auto& part = out[group / a_update][group % a_update];
    part.members.push_back(&rollouts.members[i]), part.advantage.push_back(*rollouts.advantage[i]);
  }
  return out;
}

void RlRun::remember_proximal(std::vector<Member>& members) const {
  for (auto& member : members) {
    if (member.sampled() == 0) continue;
    auto all =
        policy_log_probs(model_, config_, policy_rows(model_.config(), {&member}, config_.keep_sampling_mask), /*replayed=*/true);
    size_t at = 0;
    for (auto& segment : member.segments) {
      segment.proximal.assign(all.begin() + at, all.begin() + at + segment.drawn.size());
      at += segment.drawn.size();
    }
  }
}

Json RlRun::metrics_line(const RolloutSums& r, const UpdateSums& u) const {
  const auto& o = u.objective;
  double valid = r.members - r.invalid, tokens = std::max(1.0, o.tokens);
  Json line = {{"stage", kStage},
               {"step", step_},
               {"rollouts", (step_ + 1) * config_.prompts * config_.group},
               {"score", share(r.score, valid)},
               {"reward", share(r.reward, valid)},
               {"pass_rate", share(r.passed, valid)},
               {"length", share(r.sampled, r.members)},
               {"answers", share(r.answers, r.members)},
               {"kept_mass", share(r.kept_mass, r.sampled)},
               {"cut", share(r.cut, r.members)},
               {"malformed", share(r.malformed, r.members)},
               {"invalid", r.invalid},
               {"trained_groups", share(r.trained_groups, double(config_.prompts))},
               {"resampled_groups", r.resampled_groups},
               {"loss", o.loss},
               {"entropy", u.entropy / tokens},
               {"mismatch", u.match.mismatch},
               {"matched_tokens", u.match.tokens},
               {"ratio", o.ratio / tokens},
               {"log_old_over_new", o.log_old_over_new / tokens},
               {"clipped", o.clipped_tokens / tokens},
               {"masked", share(o.masked_members, o.negative_members)},
               {"masked_tokens", o.masked_tokens / tokens},
               {"rejected_tokens", o.rejected_tokens / tokens}};
  if (config_.replay.empty()) line["staleness"] = share(r.staleness, r.sampled);
  if (reference_) line["kl_ref"] = {{"k1", o.k1 / tokens}, {"k3", o.k3 / tokens}, {"unbiased", o.unbiased_kl / tokens}};
  Json kl = Json::array();
  for (double of_layer : u.kl) kl.push_back(share(of_layer, u.rows));
  if (config_.indexer_kl > 0) line["kl"] = kl;
  if (auto difficulties = collector_.difficulties(); !difficulties.empty()) line["difficulty"] = difficulties;
  return line;
}

// Of one group, before the step's last update.
ChangedChoices RlRun::changed_by_now(const std::vector<UpdatePart>& parts) const {
  for (const auto& part : parts)
    if (!part.members.empty()) return changed_choices(model_, config_, part);
  return {};
}

void RlRun::train_step(Metrics* metrics, Progress* progress) {
  auto begin = Clock::now();
  auto rollouts = collector_.take(model_, step_);
  auto updates = parts(rollouts);
  double rollout_seconds = seconds_since(begin);
  collector_.begin_round(model_, step_);

  if (config_.objective.correction != "none") remember_proximal(rollouts.members);
  UpdateSums all;
  Optimizer::Norms norms;
  ChangedChoices changed;
  for (int64_t i = 0; i < config_.updates; ++i) {
    int64_t version = step_ * config_.updates + i;
    if (i + 1 == config_.updates && group_.leads()) changed = changed_by_now(updates[i]);
    auto sums = accumulate_policy_gradients(model_, config_, updates[i], version, reference_ ? &*reference_ : nullptr, group_);
    norms = optimizer_.norms();
    FULGUR_CHECK(std::isfinite(norms.model) && std::isfinite(norms.indexer), "[rl] step ", step_,
                 ": expected finite gradients, got norms of ", norms.model, " (model) and ", norms.indexer,
                 " (indexer): ", optimizer_.largest_gradient(), "\n  hint: the last good checkpoint is ",
                 checkpoint_.empty() ? "none" : checkpoint_.string());
    optimizer_.step(version, norms);
    all.add(sums);
  }
  double update_seconds = seconds_since(begin) - rollout_seconds;
  all.match.add(collector_.end_round());
  double seconds = seconds_since(begin);
  rollout_seconds = seconds - update_seconds;  // of rounds, what the trainer waited for

  RolloutSums everywhere;
  for (const auto& of : group_.gather(rollouts.sums.numbers())) everywhere.add(of);
  Json line = metrics_line(everywhere, all);
  bool last = step_ + 1 == config_.steps, saved = last || (step_ + 1) % config_.checkpoint_every == 0;
  bool evaluates = last || (config_.eval_every > 0 && (step_ + 1) % config_.eval_every == 0);
  if (group_.leads()) {
    line["changed_experts"] = changed.experts, line["changed_selections"] = changed.selections;
    line["grad_norm"] = norms.model, line["indexer_grad_norm"] = norms.indexer;
    line["seconds"] = seconds, line["rollout_seconds"] = rollout_seconds, line["update_seconds"] = update_seconds;
    line["rollout_tokens_per_second"] = everywhere.sampled / (config_.staleness > 0 ? seconds : rollout_seconds);
    line["update_tokens_per_second"] = all.rows / update_seconds;
    metrics->write(line);
    char detail[96];
    std::snprintf(detail, sizeof detail, "score %.3f  entropy %.2f  length %.0f", line["score"].get<double>(),
                  line["entropy"].get<double>(), line["length"].get<double>());
    progress->update((step_ + 1) * config_.prompts * config_.group, detail);
  }
  collector_.adapt(everywhere);
  ++step_;
  if (evaluates && group_.leads() && config_.eval_tasks > 0) metrics->write(evaluate());
  if (saved) save(metrics);
}

// Of the model as it is after step_ steps; what it said goes to episodes/.
Json RlRun::evaluate() {
  Json line = {{"stage", kEvaluation}, {"step", step_}};
  std::string episodes;
  for (const auto& kind : task_kinds(config_.tasks))
    for (Split split : {Split::test, Split::fresh}) {
      auto result = pass_rate(model_, tokenizer_, config_, kind, split, config_.eval_tasks);
      if (split == Split::test) line["indexer"][kind.family->name()] = probe(result.episodes);
      line["pass"][kind.family->name()][split_name(split)] = {
          {"rate", result.rate}, {"low", result.low}, {"high", result.high}, {"tasks", result.tasks}, {"length", result.length}};
      for (size_t i = 0; i < std::min<size_t>(16, result.episodes.size()); ++i) {
        const Member& m = result.episodes[i];
        episodes += Json{{"family", kind.family->name()},
                         {"split", split_name(split)},
                         {"score", m.outcome.score ? Json(*m.outcome.score) : Json()},
                         {"end", m.end},
                         {"messages", json_of(m.conversation)}}
                        .dump(-1, ' ', false, Json::error_handler_t::replace) +
                    "\n";
      }
    }
  fs::create_directories(inputs_.run / "episodes");
  write_file_atomic(inputs_.run / "episodes" / (checkpoint_folder("", kStage, step_).filename().string() + ".jsonl"), episodes);
  return line;
}

// The indexers on some episodes, by layer: recall and attention mass of their keys, and KL, trained or not.
Json RlRun::probe(const std::vector<Member>& episodes) const {
  c10::AutoGradMode no_grad(false);
  std::vector<int32_t> tokens;
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < std::min<size_t>(16, episodes.size()); ++i)
    for (const auto& segment : episodes[i].segments) {
      tokens.insert(tokens.end(), segment.tokens.begin(), segment.tokens.end());
      lengths.push_back(int64_t(segment.tokens.size()));
    }
  auto batch = pack_documents(at::tensor(tokens, at::kInt), lengths);
  std::vector<LayerLosses> losses;
  model_.forward(batch, {.indexer_kl = true}, nullptr, &losses);
  Json kl = Json::array(), recall = Json::array(), mass = Json::array();
  for (const auto& of : losses) kl.push_back(of.kl_N.mean().item<double>());
  for (const auto& q : probe_indexer(model_, batch, {})) recall.push_back(q.recall), mass.push_back(q.mass);
  return {{"kl", kl}, {"recall", recall}, {"mass", mass}};
}

void RlRun::save(Metrics* metrics) {
  check_agreement(model_.weights(), step_, group_);
  checkpoint_ = checkpoint_folder(inputs_.run, kStage, step_);
  auto files = collector_.open_files();
  if (group_.leads()) {
    metrics->sync();
    save_checkpoint(checkpoint_, model_, &optimizer_, tokenizer_path_, {kStage, step_, facts(), collector_.state(), {}}, files);
    prune_checkpoints(inputs_.run, kStage, config_.keep_last, 0);
  }
  group_.barrier();
  if (!group_.leads()) return;
  tokenizer_path_ = checkpoint_ / "tokenizer.json";  // an older checkpoint, where it lay, may be gone
}

RlResult RlRun::run() {
  std::optional<Metrics> metrics;
  std::optional<Progress> progress;
  int64_t first = step_, a_step = config_.prompts * config_.group;
  if (group_.leads()) {
    auto path = inputs_.run / "metrics.jsonl";
    Metrics(path, kEvaluation, step_ == 0 ? 0 : step_ + 1);  // a checkpoint's own evaluation lies before it, and stays
    metrics.emplace(path, kStage, step_);
    progress.emplace(kStage, "rollouts", config_.steps * a_step, step_ * a_step);
    if (step_ == 0 && config_.eval_tasks > 0) metrics->write(evaluate());
  }
  Watchdog watchdog(config_.hang_seconds, [&](const std::string& doing, double seconds) {
    std::fprintf(stderr, "\n[rl] %s: expected it to end within %.0f s, got no end\n  hint: --resume goes on from %s\n",
                 doing.c_str(), seconds, checkpoint_.empty() ? "the start" : checkpoint_.c_str());
    _exit(1);
  });
  while (step_ < config_.steps && !stop_wanted(inputs_.stop && *inputs_.stop, group_)) {
    watchdog.alive(cat(group_.size() > 1 ? group_.name(group_.rank()) + ", " : "", "step ", step_));
    train_step(metrics ? &*metrics : nullptr, progress ? &*progress : nullptr);
  }
  if (step_ < config_.steps && step_ > first && step_ % config_.checkpoint_every != 0) save(metrics ? &*metrics : nullptr);
  return {checkpoint_, step_, step_ >= config_.steps};
}

}  // namespace

PassRate pass_rate(const Transformer& model, const Tokenizer& tokenizer, const RlConfig& config, const TaskKind& kind,
                   Split split, int64_t tasks) {
  std::vector<Attempt> attempts;
  RandomStream random(config.seed, cat("rl.eval.", kind.family->name(), ".", split_name(split)));
  for (int64_t i = 0; i < tasks; ++i) {
    auto task = draw_task(config, kind, split, kind.hardest, random.bits());
    attempts.push_back({kind.family, std::move(task), random.bits()});
  }
  auto options = engine_options(config, model.config(), tasks);
  options.record = false;
  Engine engine(model, options);
  PassRate out{.episodes = roll_out(engine, tokenizer, std::move(attempts), rollout_options(config, &tokenizer), 0)};
  double passed = 0, n = double(tasks);
  for (const auto& m : out.episodes) passed += m.outcome.score && *m.outcome.score >= 1, out.length += double(m.sampled()) / n;
  auto interval = share_interval(passed, n);
  out.tasks = tasks, out.rate = passed / n, out.low = interval.low, out.high = interval.high;
  return out;
}

RlResult train_rl(const RlConfig& config, const RlInputs& inputs, ProcessGroup& group) {
  validate(config);
  return RlRun(config, inputs, group).run();
}

}  // namespace fulgur
