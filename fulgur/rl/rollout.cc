#include "fulgur/rl/rollout.h"

#include <cmath>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>

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

// One attempt as it goes on.
class Player {
 public:
  Player(const Attempt& attempt, const Tokenizer& tokenizer, const RolloutOptions& options, int64_t version)
      : attempt_(attempt),
        tokenizer_(tokenizer),
        options_(options),
        version_(version),
        eos_(tokenizer.id(v32::kEos)),
        episode_(attempt.family->begin(attempt.task)) {
    member_.conversation = attempt.task.messages;
    begin_segment();
  }

  Request request() const {
    Request out{.prompt = member_.segments.back().tokens, .max_tokens = options_.max_tokens, .sampling = options_.sampling};
    out.sampling.seed = mix(attempt_.seed + member_.segments.size());
    out.stop_tokens = {eos_};
    return out;
  }

  // True: the attempt goes on with request().
  bool take(Generation generation) {
    Segment& segment = member_.segments.back();
    if (generation.finish == Finish::failed) return end("failed", {std::nullopt, generation.error, {}});
    std::vector<int32_t> ids;
    for (auto& token : generation.tokens) {
      segment.drawn.push_back(int64_t(segment.tokens.size()));
      segment.tokens.push_back(token.id), ids.push_back(token.id);
      segment.log_prob.push_back(token.kept_log_prob), segment.version.push_back(version_);
      bool partly = !token.kept.empty() && options_.sampling.temperature == 1;
      segment.kept_mass.push_back(partly ? std::exp(token.log_prob - token.kept_log_prob) : 1);
      segment.kept.insert(segment.kept.end(), token.kept.begin(), token.kept.end());
      segment.kept_offsets.push_back(int32_t(segment.kept.size()));
    }
    segment.record = std::move(generation.record);
    ++answers_;
    if (generation.finish != Finish::stop) return end("cut", score());
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

  // The context has no room to go on: what was not answered is forgotten.
  void cut() {
    auto& last = member_.segments.back();
    if (last.drawn.empty()) member_.segments.pop_back();
    else last.tokens.resize(last.drawn.back() + 1);
    end("cut", score());
  }
  bool begun() const { return answers_ > 0; }
  Member finish() { return std::move(member_); }

 private:
  void begin_segment() {
    member_.segments.emplace_back();
    member_.segments.back().tokens = tokenizer_.encode(encode_v32(member_.conversation, {.mode = options_.mode}));
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

  const Attempt& attempt_;
  const Tokenizer& tokenizer_;
  const RolloutOptions& options_;
  int64_t version_, answers_ = 0;
  int32_t eos_;
  std::unique_ptr<Episode> episode_;
  Member member_;
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

std::vector<Member> roll_out(Engine& engine, const Tokenizer& tokenizer, const std::vector<Attempt>& attempts,
                             const RolloutOptions& options, int64_t version) {
  std::vector<std::unique_ptr<Player>> players;
  for (const auto& attempt : attempts) players.push_back(std::make_unique<Player>(attempt, tokenizer, options, version));
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
  std::vector<Member> members;
  for (auto& player : players) members.push_back(player->finish());
  return members;
}

}  // namespace fulgur
