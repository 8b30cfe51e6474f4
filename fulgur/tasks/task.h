// Small tasks with exact verifiers: what reinforcement learning starts on. A family draws tasks from numbers, plays the other
// side of a conversation (tools and user), says how right the outcome is, and knows how a script would do it. A family is one
// file, which registers itself. No torch. Families and tasks are thread-safe; an Episode belongs to one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/base/random.h"
#include "fulgur/text/message.h"

namespace fulgur {

// Which tasks a draw may give. The three have no task in common: a task belongs to a split by a hash of its key.
//   train, test:  of the same kind
//   fresh:        of names and words that no task of the other two has; where a family has none, it is test
enum class Split { train, test, fresh };
const char* split_name(Split split);

struct Task {
  std::string family;
  std::string key;                     // decides the split: what is asked, in one form. What tools and users then say may differ
  std::vector<Message> messages = {};  // up to the first answer; tools stand in the system message
  Json data = {};                      // what the family needs to play and to verify it
};

// One attempt at a task: what answers meet. What a policy does wrong (an unknown tool, arguments that do not fit) is told to it
// in the result, and is never an exception.
class Episode {
 public:
  virtual ~Episode() = default;
  // The result of one call.
  virtual std::string call(const ToolCall& call);
  // What the user says to an answer without calls; none: the episode has ended.
  virtual std::optional<std::string> answer(const Message& message) = 0;
  // From 0, wrong, to 1, right. Behind the end; before it, what an episode that was cut there is worth.
  virtual double score() const = 0;
};

// How a script behaves: as is right, or giving up early, with what it has by then.
enum class Strategy { right, hasty };

class Family {
 public:
  virtual ~Family() = default;
  virtual std::string name() const = 0;
  virtual std::string summary() const = 0;  // one line, for people
  virtual int64_t hardest() const = 0;      // difficulties are 1 to this

  // Throws InputError on a difficulty out of range, and when the family has no task of this split.
  Task task(Split split, int64_t difficulty, uint64_t seed) const;

  virtual std::unique_ptr<Episode> begin(const Task& task) const = 0;
  // The next assistant message of a script; `conversation` begins with the task's messages. Its reasoning is what to think; a
  // conversation in chat mode leaves it away.
  virtual Message solve(const Task& task, const std::vector<Message>& conversation, Strategy strategy) const = 0;

 protected:
  // Any task; task() draws until one is of the split and sets the family. `fresh` says which names may stand in it:
  // is_fresh(name) must agree.
  virtual Task draw(int64_t difficulty, bool fresh, RandomStream& random) const = 0;
};

// The split of a key: one in eight is test.
Split split_of(const std::string& key);
// Whether a name or word is one of those that only fresh tasks have: one in eight is.
bool is_fresh(const std::string& name);

// All families, by name. A name that ends with .jsonl is a file's (read_family), which is read once; not thread-safe then. Throws
// InputError that lists them when there is none of this name.
const std::vector<const Family*>& families();
const Family& family(const std::string& name);

// At the end of a family's file: FULGUR_FAMILY(Reverse).
const Family& register_family(std::unique_ptr<const Family> family);
#define FULGUR_FAMILY(Class) \
  static const bool registered_##Class = (static_cast<void>(::fulgur::register_family(std::make_unique<Class>())), true)

// The script's whole conversation, as a training sample: the task's messages, then answers and what they met.
std::vector<Message> demonstrate(const Family& family, const Task& task, Strategy strategy);

// Tasks of your own: a file of JSON Lines with "prompt", "answer" and, where the answer is not to be met exactly but for white
// space around it, "verify": number, regex, schema or rubric (rl/rewards/verifier.h), which a task's data["given"] holds. Its
// name is the path. No difficulty, no fresh names. Throws InputError with the line and field.
std::unique_ptr<const Family> read_family(const std::string& path);

}  // namespace fulgur
