// How an answer to a task of a file is verified, where its line asks for more than the exact words (tasks/task.h, read_family).
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fulgur/rl/rewards/reward.h"
#include "fulgur/rl/rewards/rubric.h"

namespace fulgur {

// Thread-safe.
class Verifier {
 public:
  // `judge`: who scores rubrics; without a base_url nobody does. `seconds`: the longest a reward takes. Throws InputError as
  // RubricJudge does.
  Verifier(const EndpointOptions& judge, double seconds);

  // Of a task's data {"verify": ..., "answer": ...}:
  //   number: the last number of the answer is this one, to 1e-6   regex: it is found in the answer   schema: the answer is such
  //   JSON   rubric: [text or {"text", "weight"}, ...], the judge's scores
  // None where nothing of the kind is asked for: the family's own score stands. Invalid as run_reward has it (guard.h). Throws
  // InputError on a pattern or schema that cannot be understood, and on a rubric when there is no judge.
  std::optional<Outcome> operator()(const Json& data, const std::vector<Message>& conversation) const;

 private:
  std::optional<RubricJudge> judge_;
  double seconds_;
};

}  // namespace fulgur
