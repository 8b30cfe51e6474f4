#include "fulgur/rl/rollout.h"

#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <limits>
#include <mutex>
#include <utility>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/text/v32_format.h"
#include "fulgur/text/v32_parse.h"

namespace fulgur {
namespace {

// What the engine gave for one request.
struct Generation {
  std::vector<Token> tokens;
  Finish finish = Finish::failed;
  std::string error;
  Record record;
};

// Adds the places that `later`, of the same text gone further, has and `record` has not.
void extend(Choices& record, const Choices& later) {
  if (record.positions == 0) record = later;
  if (record.positions >= later.positions) return;
  Choices out{later.layers, later.positions, later.k, {}};
  auto copy = [&](const Choices& from, int64_t layer, int64_t begin, int64_t end) {
    auto at = from.ids.begin() + layer * from.positions * from.k;
    out.ids.insert(out.ids.end(), at + begin * from.k, at + end * from.k);
  };
  for (int64_t layer = 0; layer < later.layers; ++layer)
    copy(record, layer, 0, record.positions), copy(later, layer, record.positions, later.positions);
  record = std::move(out);
}

// One member as it goes on.
class Player {
 public:
  Player(const Turn& turn, const Tokenizer& tokenizer, const RolloutOptions& options, int64_t version)
      : member_(*turn.member),
        tokenizer_(tokenizer),
        options_(options),
        version_(version),
        left_(turn.tokens > 0 ? turn.tokens : std::numeric_limits<int64_t>::max()),
        eos_(tokenizer.id(v32::kEos)),
        episode_(member_.attempt.family->begin(member_.attempt.task)) {
    if (options.grammars) constraint_ = options.grammars->of(member_.attempt.task.messages);
    if (member_.conversation.empty()) {
      member_.conversation = member_.attempt.task.messages;
      begin_segment();
    } else {
      replay();
    }
  }

  Request request() {
    asked_ = std::min(options_.max_tokens - member_.unfinished, left_);
    Request out{.prompt = member_.segments.back().tokens, .max_tokens = asked_, .sampling = options_.sampling};
    out.sampling.seed = mix(member_.attempt.seed + member_.segments.size());
    out.stop_tokens = {eos_};
    out.constraint = constraint_, out.answered = member_.unfinished;
    return out;
  }

  // True: it goes on with request().
  bool take(Generation generation) {
    if (generation.finish == Finish::failed) return end("failed", invalid_outcome(generation.error));
    int64_t drawn = int64_t(generation.tokens.size());
    add(generation);
    if (generation.finish == Finish::stop) return read_answer() && left_ > 0;
    bool out_of_room = drawn < asked_, too_long = member_.unfinished >= options_.max_tokens;
    return out_of_room || too_long ? end("cut", score()) : left_ > 0;
  }

  // The context has no room to go on: what was not answered is forgotten.
  void cut() {
    auto& last = member_.segments.back();
    if (last.drawn.empty()) member_.segments.pop_back();
    else last.tokens.resize(last.drawn.back() + 1);
    end("cut", score());
  }
  bool begun() const { return member_.segments.size() > 1 || !member_.segments.back().drawn.empty(); }

 private:
  void begin_segment() {
    member_.segments.emplace_back();
    member_.segments.back().tokens = tokenizer_.encode(encode_v32(member_.conversation, {.mode = options_.mode}));
  }

  // Brings the episode to where the conversation is.
  void replay() {
    for (size_t i = member_.attempt.task.messages.size(); i < member_.conversation.size(); ++i) {
      const Message& message = member_.conversation[i];
      if (message.role != Role::assistant) continue;
      ++answers_;
      for (const auto& call : message.tool_calls) episode_->call(call);
      if (message.tool_calls.empty()) episode_->answer(message);
    }
  }

  void add(Generation& generation) {
    Segment& segment = member_.segments.back();
    for (auto& token : generation.tokens) {
      segment.drawn.push_back(int64_t(segment.tokens.size()));
      segment.tokens.push_back(token.id);
      segment.log_prob.push_back(token.kept_log_prob), segment.version.push_back(version_);
      bool partly = !token.kept.empty() && options_.sampling.temperature == 1;
      segment.kept_mass.push_back(partly ? std::exp(token.log_prob - token.kept_log_prob) : 1);
      segment.kept.insert(segment.kept.end(), token.kept.begin(), token.kept.end());
      segment.kept_offsets.push_back(int32_t(segment.kept.size()));
    }
    extend(segment.record.experts, generation.record.experts);
    extend(segment.record.selected, generation.record.selected);
    member_.unfinished += int64_t(generation.tokens.size()), left_ -= int64_t(generation.tokens.size());
  }

  bool read_answer() {
    const auto& tokens = member_.segments.back().tokens;
    std::vector<int32_t> ids(tokens.end() - std::exchange(member_.unfinished, 0), tokens.end());
    ++answers_;
    Message message;
    try {
      message = parse_v32(tokenizer_.decode(ids), options_.mode);
    } catch (const InputError& error) {
      return end("malformed", {0.0, error.what(), {}});
    }
    message.role = Role::assistant;
    member_.conversation.push_back(message);
    return message.tool_calls.empty() ? go_on_behind_answer(message) : go_on_behind_calls(message);
  }

  bool go_on_behind_answer(const Message& message) {
    auto reply = episode_->answer(message);
    if (!reply) return end("answered", score());
    if (answers_ >= options_.max_answers) return end("cut", score());
    member_.conversation.push_back({.role = Role::user, .content = *reply});
    begin_segment();
    return true;
  }

  bool go_on_behind_calls(const Message& message) {
    if (answers_ >= options_.max_answers) return end("cut", score());
    std::vector<Message> results;
    for (const auto& call : message.tool_calls) results.push_back({.role = Role::tool, .content = episode_->call(call)});
    std::vector<int32_t> added;
    try {
      added = tokenizer_.encode(encode_v32(results, {.mode = options_.mode}, member_.conversation));
    } catch (const InputError& error) {
      return end("malformed", {0.0, error.what(), {}});
    }
    auto& tokens = member_.segments.back().tokens;
    tokens.insert(tokens.end(), added.begin(), added.end());
    member_.conversation.insert(member_.conversation.end(), results.begin(), results.end());
    return true;
  }

  Outcome score() const { return {episode_->score(), "", {}}; }

  bool end(const std::string& how, Outcome outcome) {
    member_.end = how, member_.outcome = std::move(outcome);
    return false;
  }

  Member& member_;
  const Tokenizer& tokenizer_;
  const RolloutOptions& options_;
  int64_t version_, left_, asked_ = 0, answers_ = 0;
  int32_t eos_;
  std::unique_ptr<Episode> episode_;
  std::shared_ptr<const Constraint> constraint_;  // of all its answers: a task's tools stay
};

// Players whose generation has ended, on their way from the engine's thread.
class Ended {
 public:
  void push(size_t player) {
    {
      std::lock_guard lock(mutex_);
      players_.push_back(player);
    }
    any_.notify_one();
  }
  size_t pop() {
    std::unique_lock lock(mutex_);
    any_.wait(lock, [&] { return !players_.empty(); });
    size_t first = players_.front();
    players_.pop_front();
    return first;
  }

 private:
  std::mutex mutex_;
  std::condition_variable any_;
  std::deque<size_t> players_;
};

}  // namespace

int64_t Member::sampled() const {
  int64_t count = 0;
  for (const auto& segment : segments) count += int64_t(segment.drawn.size());
  return count;
}

void validate(const RolloutOptions& o) {
  FULGUR_CHECK(!o.sampling.penalises() && o.sampling.logit_bias.empty(),
               "[rl] sampling: expected no penalties and no bias, got some\n  hint: a policy's ratio needs the very distribution "
               "tokens were drawn from");
  FULGUR_CHECK(o.sampling.temperature > 0, "[rl] temperature: expected a number above 0, got ", o.sampling.temperature);
  FULGUR_CHECK(o.max_tokens > 0 && o.max_answers > 0, "[rl] max_tokens and max_answers: expected 1 or more, got ", o.max_tokens,
               " and ", o.max_answers);
}

void roll_on(Engine& engine, const Tokenizer& tokenizer, const RolloutOptions& options, int64_t version,
             const std::vector<Turn>& turns) {
  std::vector<std::unique_ptr<Player>> players;
  for (const auto& turn : turns) players.push_back(std::make_unique<Player>(turn, tokenizer, options, version));
  std::vector<Generation> generations(players.size());
  Ended ended;
  size_t running = 0;
  std::exception_ptr failed;  // thrown once nothing runs that knows of this call
  auto submit = [&](size_t i) {
    if (failed) return;
    try {
      engine.submit(players[i]->request(), [&generations, &ended, i](const Event& event) {
        Generation& to = generations[i];
        if (event.token) to.tokens.push_back(*event.token);
        if (!event.finish) return;
        to.finish = *event.finish, to.error = event.error;
        if (event.record) to.record = *event.record;
        ended.push(i);
      });
      ++running;
    } catch (const QueueFull&) {
      failed = std::current_exception();
    } catch (const InputError&) {  // longer than the context
      if (players[i]->begun()) players[i]->cut();
      else failed = std::current_exception();
    }
  };
  for (size_t i = 0; i < players.size(); ++i) submit(i);
  for (; running > 0; --running) {
    size_t i = ended.pop();
    if (players[i]->take(std::exchange(generations[i], {}))) submit(i);
  }
  if (failed) std::rethrow_exception(failed);
}

std::vector<Member> roll_out(Engine& engine, const Tokenizer& tokenizer, std::vector<Attempt> attempts,
                             const RolloutOptions& options, int64_t version) {
  std::vector<Member> members;
  for (auto& attempt : attempts) members.push_back({.attempt = std::move(attempt)});
  std::vector<Turn> turns;
  for (auto& member : members) turns.push_back({&member});
  roll_on(engine, tokenizer, options, version, turns);
  return members;
}

}  // namespace fulgur
