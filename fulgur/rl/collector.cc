#include "fulgur/rl/collector.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <utility>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/random.h"
#include "fulgur/rl/batch_file.h"
#include "fulgur/rl/rewards/language.h"
#include "fulgur/train/resume.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

constexpr size_t kJudgesAtOnce = 16;
constexpr double kTooEasy = 0.8, kTooHard = 0.2;  // pass rates at which a difficulty moves

std::string last_user(const Member& member) {
  for (size_t i = member.conversation.size(); i > 0; --i)
    if (member.conversation[i - 1].role == Role::user) return member.conversation[i - 1].content;
  return "";
}

// "rl-00000012-0.safetensors"
std::string batch_name(int64_t step, int rank) {
  return cat(checkpoint_folder("", "rl", step).filename().string(), "-", rank, ".safetensors");
}

std::string journal_name(int rank) { return rank == 0 ? "outcomes.jsonl" : cat("outcomes-", rank, ".jsonl"); }

// Of the other ranks, those of a run that had more of them included.
std::vector<fs::path> other_journals(const fs::path& run, int rank) {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(run)) {
    auto name = entry.path().filename().string();
    bool journal = name.starts_with("outcomes") && name.ends_with(".jsonl");
    if (journal && name != journal_name(rank)) out.push_back(entry.path());
  }
  return out;
}

// "12.3.5" and "12.3+1.5": step, prompt, how often it was drawn before, attempt.
std::string key_of(int64_t step, int64_t prompt, int64_t wave, int64_t attempt) {
  return cat(step, ".", prompt, wave > 0 ? cat("+", wave) : "", ".", attempt);
}
int64_t part_of_key(const std::string& key, int part) {
  size_t at = 0;
  for (; part > 0 && at != std::string::npos; --part) at = key.find('.', at) + 1;
  return std::strtoll(key.c_str() + at, nullptr, 10);
}

// Weights that stay as they are while the trainer changes its own.
Transformer frozen_copy(const Transformer& model) {
  Weights weights = model.weights();
  for (auto& p : parameters(weights)) *p.tensor = p.tensor->detach().clone();
  if (weights.tied) weights.lm_head = weights.embed_tokens;
  if (weights.mtp) weights.mtp->embed_tokens = weights.embed_tokens, weights.mtp->head = weights.lm_head;
  return Transformer(model.config(), weights);
}

}  // namespace

std::vector<double> RolloutSums::numbers() const {
  std::vector<double> out{members,   invalid, score,     reward,         passed,           sampled,  answers,
                          kept_mass, cut,     malformed, trained_groups, resampled_groups, staleness};
  out.insert(out.end(), valid_of_kind.begin(), valid_of_kind.end());
  out.insert(out.end(), passed_of_kind.begin(), passed_of_kind.end());
  return out;
}

void RolloutSums::add(const std::vector<double>& numbers) {
  auto from = numbers.begin();
  for (double* to : {&members, &invalid, &score, &reward, &passed, &sampled, &answers, &kept_mass, &cut, &malformed,
                     &trained_groups, &resampled_groups, &staleness})
    *to += *from++;
  size_t kinds = size_t(numbers.end() - from) / 2;
  valid_of_kind.resize(kinds), passed_of_kind.resize(kinds);
  for (double& to : valid_of_kind) to += *from++;
  for (double& to : passed_of_kind) to += *from++;
}

Collector::Collector(const RlConfig& config, const fs::path& run, const Tokenizer& tokenizer, ProcessGroup& group)
    : config_(config),
      run_(run),
      tokenizer_(tokenizer),
      options_(rollout_options(config, &tokenizer)),
      group_(group),
      kinds_(task_kinds(config.tasks)),
      journal_(run / journal_name(group.rank()), other_journals(run, group.rank())),
      verifier_({.base_url = config.judge_url,
                 .model = config.judge_model,
                 .api_key_variable = config.judge_key_variable,
                 .attempt_seconds = config.reward_seconds,
                 .total_seconds = config.reward_seconds},
                config.reward_seconds) {
  FULGUR_CHECK(config.prompts % (config.updates * group.size()) == 0, "[rl] prompts: expected a multiple of ", config.updates,
               " updates times ", group.size(), " ranks, got ", config.prompts);
  for (const auto& kind : kinds_) difficulty_.push_back(kind.difficulty);
}

Collector::~Collector() {
  if (running_.valid()) running_.wait();
}

// The number, among all of a step, of this rank's prompt `local`: each update is shared by all ranks.
int64_t Collector::global_prompt(int64_t local) const {
  int64_t an_update = config_.prompts / config_.updates, mine = an_update / group_.size();
  return local / mine * an_update + group_.rank() * mine + local % mine;
}

std::vector<Member> Collector::draw(int64_t step, const Wave& wave) const {
  std::vector<Member> out;
  for (int64_t local : wave.prompts) {
    int64_t prompt = global_prompt(local), number = step * config_.prompts + prompt;
    RandomStream random(config_.seed, cat("rl.prompt.", number, wave.number > 0 ? cat(".", wave.number) : ""));
    size_t kind = size_t(number) % kinds_.size();
    auto task = draw_task(config_, kinds_[kind], Split::train, difficulty_[kind], random.bits());
    for (int64_t i = 0; i < config_.group; ++i)
      out.push_back({.attempt = {kinds_[kind].family, task, random.bits(), key_of(step, prompt, wave.number, i)}});
  }
  return out;
}

void Collector::play(const Transformer& model, const std::vector<Turn>& turns, int64_t version) {
  if (turns.empty()) return;
  Engine engine(model, engine_options(config_, model.config(), int64_t(turns.size())));
  roll_on(engine, tokenizer_, options_, version, turns);
}

// Outcomes as journaled: on disk before they are used, and never asked for again.
void Collector::reward(const std::vector<Member*>& members) {
  std::vector<Member*> asked;
  for (Member* member : members) {
    if (auto known = journal_.find(member->attempt.key)) member->outcome = *known;
    else asked.push_back(member);
  }
  verify(asked);
  std::vector<std::pair<std::string, Outcome>> outcomes;
  for (Member* member : asked) outcomes.emplace_back(member->attempt.key, member->outcome);
  journal_.append(outcomes);
}

// What is not the family's own to say; judges are asked for many answers at once.
void Collector::verify(const std::vector<Member*>& members) const {
  std::vector<Member*> asked;
  for (Member* m : members)
    if (m->end == "answered" && m->attempt.task.data.is_object() && m->attempt.task.data.contains("given")) asked.push_back(m);
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next++; i < asked.size(); i = next++)
      if (auto outcome = verifier_(asked[i]->attempt.task.data["given"], asked[i]->conversation)) asked[i]->outcome = *outcome;
  };
  std::vector<std::future<void>> workers;
  for (size_t i = 0; i < std::min(kJudgesAtOnce, asked.size()); ++i) workers.push_back(std::async(std::launch::async, work));
  for (auto& worker : workers) worker.get();
}

void Collector::add_relative_lengths(const std::vector<std::optional<double>>& scores, const std::vector<int64_t>& lengths,
                                     std::vector<std::optional<double>>& rewards) const {
  if (config_.relative_length == 0) return;
  for (auto first = size_t(0); first < scores.size(); first += size_t(config_.group)) {
    auto of_group = [&](const auto& all) { return std::vector(all.begin() + first, all.begin() + first + config_.group); };
    auto added = relative_length_rewards(of_group(lengths), of_group(scores));
    for (size_t i = 0; i < added.size(); ++i)
      if (added[i]) *rewards[first + i] += config_.relative_length * *added[i];
  }
}

// Scores to rewards and advantages, of this rank's groups from `first` on.
Rollouts Collector::measured(std::vector<Member> members, int64_t step, int64_t first) const {
  Rollouts out;
  auto& sums = out.sums;
  sums.valid_of_kind.resize(kinds_.size()), sums.passed_of_kind.resize(kinds_.size());
  std::vector<std::optional<double>> scores, rewards;
  std::vector<int64_t> lengths, groups;
  for (size_t i = 0; i < members.size(); ++i) {
    const Member& m = members[i];
    int64_t group = int64_t(i) / config_.group;
    size_t kind = size_t(step * config_.prompts + global_prompt(first + group)) % kinds_.size();
    std::optional<double> reward = m.outcome.score;
    ++sums.members, sums.invalid += !reward, sums.cut += m.end == "cut", sums.malformed += m.end == "malformed";
    for (const auto& message : m.conversation) sums.answers += message.role == Role::assistant;
    for (const auto& segment : m.segments) {
      sums.sampled += double(segment.drawn.size());
      for (size_t t = 0; t < segment.drawn.size(); ++t)
        sums.kept_mass += segment.kept_mass[t], sums.staleness += double(step - segment.version[t] / config_.updates);
    }
    scores.push_back(reward), lengths.push_back(m.sampled());
    if (reward) {
      sums.score += *reward, sums.passed += *reward >= 1;
      ++sums.valid_of_kind[kind], sums.passed_of_kind[kind] += *reward >= 1;
      *reward += linear_length_penalty(m.sampled(), config_.length_budget, config_.length_slope);
      if (config_.language > 0) *reward += config_.language * language_consistency(last_user(m), m.conversation.back().content);
    }
    rewards.push_back(reward), groups.push_back(group);
  }
  add_relative_lengths(scores, lengths, rewards);
  for (const auto& reward : rewards) sums.reward += reward.value_or(0);
  out.advantage = advantages(rewards, groups, config_.divide_by_std, config_.drop_equal);
  std::set<int64_t> trained;
  for (size_t i = 0; i < members.size(); ++i) {
    if (members[i].sampled() == 0) out.advantage[i].reset();
    if (out.advantage[i]) trained.insert(groups[i]);
  }
  sums.trained_groups = double(trained.size());
  out.members = std::move(members);
  return out;
}

// Groups that teach nothing are drawn again, from other tasks (dynamic sampling). The new ones take their place in what is
// trained on; both count in what is reported.
void Collector::redraw(const Transformer& model, int64_t step, Rollouts& rollouts) {
  RolloutSums replaced;
  for (int64_t wave = 1; wave <= config_.resample; ++wave) {
    Wave again{.number = wave};
    for (int64_t group = 0; group < local_prompts(); ++group) {
      auto first = rollouts.advantage.begin() + group * config_.group;
      if (std::none_of(first, first + config_.group, [](const auto& a) { return a.has_value(); })) again.prompts.push_back(group);
    }
    if (again.prompts.empty()) break;
    auto drawn = draw(step, again);
    play_to_the_end(model, drawn, step * config_.updates);
    for (size_t i = 0; i < drawn.size(); ++i)
      std::swap(rollouts.members[again.prompts[i / config_.group] * config_.group + i % config_.group], drawn[i]);
    for (size_t i = 0; i < again.prompts.size(); ++i) {
      auto first = drawn.begin() + int64_t(i) * config_.group;
      std::vector<Member> group(std::make_move_iterator(first), std::make_move_iterator(first + config_.group));
      replaced.add(measured(std::move(group), step, again.prompts[i]).sums.numbers());
    }
    replaced.resampled_groups += double(again.prompts.size());
    rollouts = measured(std::move(rollouts.members), step);
  }
  if (replaced.members > 0) rollouts.sums.add(replaced.numbers());
}

void Collector::play_to_the_end(const Transformer& model, std::vector<Member>& members, int64_t version) {
  std::vector<Turn> turns;
  std::vector<Member*> all;
  for (auto& member : members) turns.push_back({&member, 0}), all.push_back(&member);
  play(model, turns, version);
  reward(all);
}

Rollouts Collector::take(const Transformer& model, int64_t step) {
  if (!config_.replay.empty()) return measured(replayed(model.config(), step), step);
  if (config_.staleness == 0) {
    start(step);
    play_to_the_end(model, open_[step], step * config_.updates);
  }
  while (started_ < std::min(config_.steps, step + config_.staleness)) round(model, started_, step * config_.updates);
  auto out = measured(std::move(open_.extract(step).mapped()), step);
  if (config_.resample > 0) redraw(model, step, out);
  if (config_.keep_batches) {
    std::vector<const Member*> all;
    for (const auto& member : out.members) all.push_back(&member);
    fs::create_directories(run_ / "batches");
    write_batch(run_ / "batches" / batch_name(step, group_.rank()), all);
  }
  return out;
}

void Collector::start(int64_t batch) {
  Wave wave;
  for (int64_t local = 0; local < local_prompts(); ++local) wave.prompts.push_back(local);
  open_[batch] = draw(batch, wave);
  started_ = batch + 1;
}

// Starts `batch` where there is one, and takes all open ones on.
void Collector::round(const Transformer& model, int64_t batch, int64_t version) {
  if (batch < config_.steps) start(batch);
  std::vector<Turn> turns;
  for (auto& [begun, members] : open_)
    for (auto& member : members)
      if (member.end.empty()) turns.push_back({&member, begun <= batch + 1 - config_.staleness ? 0 : config_.round_tokens});
  play(model, turns, version);
  std::vector<Member*> ended;
  for (const auto& turn : turns)
    if (!turn.member->end.empty()) ended.push_back(turn.member);
  reward(ended);
  // As many as a group has are looked at: each token against the very weights that drew it.
  std::vector<const Member*> some;
  for (Member* member : ended)
    if (member->sampled() > 0 && int64_t(some.size()) < config_.group) some.push_back(member);
  if (!some.empty()) match_.add(match_own_version(model, config_, some, version));
}

void Collector::begin_round(const Transformer& model, int64_t step) {
  if (config_.staleness == 0 || !config_.replay.empty() || (started_ == config_.steps && open_.empty())) return;
  running_ = std::async(std::launch::async, [this, copy = frozen_copy(model), step] {
    round(copy, step + config_.staleness, step * config_.updates);
  });
}

Match Collector::end_round() {
  if (running_.valid()) running_.get();
  Match everywhere, mine = std::exchange(match_, {});
  for (const auto& of : group_.gather(std::vector<double>{mine.mismatch, mine.tokens})) everywhere.add({of[0], of[1]});
  return everywhere;
}

void Collector::adapt(const RolloutSums& everywhere) {
  for (size_t i = 0; i < kinds_.size(); ++i) {
    double valid = everywhere.valid_of_kind[i], passed = everywhere.passed_of_kind[i];
    if (valid == 0) continue;
    int64_t move = passed >= kTooEasy * valid ? 1 : passed <= kTooHard * valid ? -1 : 0;
    difficulty_[i] = std::clamp(difficulty_[i] + move, kinds_[i].difficulty, kinds_[i].hardest);
  }
}

Json Collector::difficulties() const {
  Json out = Json::object();
  for (size_t i = 0; i < kinds_.size(); ++i)
    if (kinds_[i].difficulty < kinds_[i].hardest) out[kinds_[i].family->name()] = difficulty_[i];
  return out;
}

Json Collector::state() const { return {{"difficulties", difficulty_}, {"started", started_}}; }

std::map<std::string, std::string> Collector::open_files() const {
  std::map<std::string, std::string> out;
  if (config_.staleness == 0) return out;
  std::vector<const Member*> all;
  for (const auto& [step, members] : open_)
    for (const auto& member : members) all.push_back(&member);
  auto mine = run_ / cat("open-", group_.rank(), ".safetensors");
  write_batch(mine, all);
  auto bytes = read_file(mine);
  fs::remove(mine);
  auto of_ranks = group_.gather(bytes);
  for (size_t rank = 0; rank < of_ranks.size(); ++rank) out[cat("open-", rank, ".safetensors")] = of_ranks[rank];
  return out;
}

void Collector::load(const fs::path& checkpoint, const Json& state, const ModelConfig& model) {
  if (state.contains("difficulties") && state["difficulties"].size() == kinds_.size())
    difficulty_ = state["difficulties"].get<std::vector<int64_t>>();
  started_ = state.value("started", int64_t(0));
  std::map<int64_t, std::vector<Member>> all;
  for (int rank = 0; fs::exists(checkpoint / cat("open-", rank, ".safetensors")); ++rank)
    for (auto& member : read_batch(checkpoint / cat("open-", rank, ".safetensors"), model))
      all[part_of_key(member.attempt.key, 0)].push_back(std::move(member));
  for (auto& [step, members] : all) open_[step] = mine(std::move(members), checkpoint.string());
}

// This rank's of a batch, in its order.
std::vector<Member> Collector::mine(std::vector<Member> all, const std::string& where) const {
  FULGUR_CHECK(int64_t(all.size()) == config_.prompts * config_.group, "[rl] ", where, ": expected a batch of ", config_.prompts,
               " times ", config_.group, " attempts, got ", all.size());
  std::map<std::pair<int64_t, int64_t>, Member*> by_place;
  for (auto& member : all) by_place[{part_of_key(member.attempt.key, 1), part_of_key(member.attempt.key, 2)}] = &member;
  std::vector<Member> out;
  for (int64_t local = 0; local < local_prompts(); ++local)
    for (int64_t i = 0; i < config_.group; ++i) {
      auto found = by_place.find({global_prompt(local), i});
      FULGUR_CHECK(found != by_place.end(), "[rl] ", where, ": expected attempt ", i, " at prompt ", global_prompt(local),
                   ", got none");
      out.push_back(std::move(*found->second));
    }
  return out;
}

// Batches of another run, over and over. Their weights were others: no token is held against these.
std::vector<Member> Collector::replayed(const ModelConfig& model, int64_t step) const {
  fs::path folder = config_.replay;
  std::set<std::string> steps;
  if (fs::is_directory(folder))
    for (const auto& entry : fs::directory_iterator(folder)) {
      auto name = entry.path().filename().string();
      if (name.size() > 12 && name.starts_with("rl-") && name.ends_with(".safetensors")) steps.insert(name.substr(0, 11));
    }
  FULGUR_CHECK(!steps.empty(), "[rl] replay: expected a folder of batches that a run with keep_batches left, got ",
               folder.string());
  auto name = *std::next(steps.begin(), step % int64_t(steps.size()));
  std::vector<Member> all;
  for (int rank = 0; fs::exists(folder / cat(name, "-", rank, ".safetensors")); ++rank)
    for (auto& member : read_batch(folder / cat(name, "-", rank, ".safetensors"), model)) all.push_back(std::move(member));
  for (auto& member : all)
    for (auto& segment : member.segments) std::fill(segment.version.begin(), segment.version.end(), -1);
  return mine(std::move(all), (folder / name).string());
}

}  // namespace fulgur
