// What a reward says of one answer, and rewards that need nothing but the answer. All functions are thread-safe and have no
// state.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "fulgur/base/json.h"

namespace fulgur {

// A reward that failed, hung or could not be asked is invalid: it has no score, is never trained on and never read as 0. A wrong
// answer is valid, with score 0.
struct Outcome {
  std::optional<double> score = {};  // none: invalid
  std::string why = {};              // for people; of an invalid one "kind: what happened", see OutcomeTally
  Json detail = {};                  // what it was made of, such as a judge's prompt and scores
  bool operator==(const Outcome&) const = default;
};
Outcome invalid_outcome(std::string why, Json detail = {});

// Counts outcomes to show them: invalid ones by their kind, which is what stands before the colon of `why`.
struct OutcomeTally {
  int64_t valid = 0;
  std::map<std::string, int64_t> invalid = {};
  void add(const Outcome& outcome);
  int64_t invalid_count() const;
  std::string line() const;  // "98 valid, 2 invalid (time limit 2)"
};

// 1 when both are the same bytes but for white space (ASCII's) around them, else 0.
Outcome exact_match(std::string_view answer, std::string_view expected);

// The number an answer gives: the last one in its last \boxed{...}, or in all of it when it has none that is closed. None when
// there is none, or the last is beyond a double (1e999, 3/0). Read are 42, -1.5, .5, 1,234.5, 1e3, 3/4 and \frac{3}{4}; a minus
// may be U+2212. Signs of currency, per cent and units are passed over; digits within a word (x2) are no number, and a minus
// behind a digit, letter or bracket is an operation: 10-5 ends with 5. Not read: decimal commas, mixed numbers (1 1/2), other
// scripts' digits.
std::optional<double> last_number(std::string_view answer);

// 1 when |number - expected| <= tolerance * max(1, |expected|), else 0: absolute near zero, relative beyond 1. Doubles: of
// integers beyond 2^53 take exact_match. Throws InputError unless `expected` is finite and `tolerance` finite and not negative.
Outcome numeric_match(std::string_view answer, double expected, double tolerance = 0);

// Equality of JSON values: an object's order does not count, and 1 is 1.0.
bool same_json(const Json& a, const Json& b);

// What must hold of the state that tools have left behind in this process.
struct StateCheck {
  std::string pointer;                // RFC 6901; "" is the whole state
  std::optional<Json> expected = {};  // none: nothing may be there
};
// 1 when all hold, else 0; detail is {"failed": [pointers], "checks": n}. Throws InputError on a pointer that is none.
Outcome state_match(const Json& state, const std::vector<StateCheck>& checks);

// -slope * max(0, length - budget): 0 within the budget, without a lower end beyond it. In tokens, or whatever both are in.
// Throws InputError on a negative or non-finite argument.
double linear_length_penalty(int64_t length, int64_t budget, double slope);

// For each answer of a group, in [-0.5, 0.5]: lambda = 0.5 - (length - shortest) / (longest - shortest) for a right one, min(0,
// lambda) for another; all 0 where all are equally long. Invalid ones (no score) get none, and are neither shortest nor longest.
// Right is a score of `right_from` and more. Throws InputError when sizes differ or a length is negative.
// Source: Kimi k1.5 (arXiv 2501.12599), section 2.3.3.
std::vector<std::optional<double>> relative_length_rewards(const std::vector<int64_t>& lengths,
                                                           const std::vector<std::optional<double>>& scores,
                                                           double right_from = 1);

}  // namespace fulgur
