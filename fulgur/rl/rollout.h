// Attempts at tasks by a policy: groups of them at once in one engine, over several turns, with tools. Token ids only: what was
// drawn is never turned into text and back within a segment.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "fulgur/engine/engine.h"
#include "fulgur/rl/answer_grammars.h"
#include "fulgur/rl/rewards/reward.h"
#include "fulgur/tasks/task.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/text/v32_encode.h"

namespace fulgur {

// A prompt and what followed it: answers, and tools' results between them. A user's turn begins another segment, since it
// rewrites the prompt (reasoning is dropped, spec G.3).
struct Segment {
  std::vector<int32_t> tokens;
  // Of the tokens the policy drew, in order:
  std::vector<int64_t> drawn = {};                  // places in `tokens`
  std::vector<float> log_prob = {};                 // among what was kept, at the sampling temperature
  std::vector<float> kept_mass = {};                // probability of all that was kept, where the temperature is 1; else 1
  std::vector<int64_t> version = {};                // of the weights
  std::vector<int32_t> kept_offsets{0}, kept = {};  // what each draw chose among (CSR); none: every token
  std::vector<float> proximal = {};                 // log-probability before the step's updates, where a correction needs it
  // Of all tokens but the last; of each, what the pass chose that drew its successor.
  Record record = {};
};

// A member of a group before it has begun.
struct Attempt {
  const Family* family = nullptr;
  Task task;
  uint64_t seed = 0;     // of its draws
  std::string key = {};  // names it in a run: journals and stored batches
};

// An attempt as far as it has come: all that going on with it takes.
struct Member {
  Attempt attempt;
  std::vector<Message> conversation = {};  // the task's messages, then what came
  std::vector<Segment> segments = {};
  int64_t unfinished = 0;  // last tokens of an answer that goes on
  // none: it goes on; answered; cut: an answer was too long, or there were too many; malformed: an answer could not be read;
  // failed: the engine could not
  std::string end = {};
  Outcome outcome = {};
  int64_t sampled() const;  // tokens drawn
};

struct RolloutOptions {
  Sampling sampling = {};    // its seed is not used
  int64_t max_tokens = 128;  // of an answer
  int64_t max_answers = 6;   // of an episode, calls included
  ThinkingMode mode = ThinkingMode::chat;
  std::shared_ptr<AnswerGrammars> grammars = nullptr;  // none: answers are free, and may be malformed
};

// Throws InputError where a sampling parameter bends probabilities (penalties, bias): no ratio is defined then; or the
// temperature is 0.
void validate(const RolloutOptions& options);

// A member that has not ended, and how many tokens it draws next at most; 0: to its end.
struct Turn {
  Member* member;
  int64_t tokens = 0;
};

// Takes members on in one engine, all at once. The engine must record and have room for all in its queue; `version` numbers its
// weights. A function of (weights, members, options) alone: the same in one turn or many. Episodes are played again up to where
// they are, so what a family says must follow from what it was told. Throws InputError when a task's prompt does not fit the
// context.
void roll_on(Engine& engine, const Tokenizer& tokenizer, const RolloutOptions& options, int64_t version,
             const std::vector<Turn>& turns);

// From the beginning to the end, a member for each attempt.
std::vector<Member> roll_out(Engine& engine, const Tokenizer& tokenizer, std::vector<Attempt> attempts,
                             const RolloutOptions& options, int64_t version);

}  // namespace fulgur
