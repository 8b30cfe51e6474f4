// A regular expression as a reward.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "fulgur/rl/rewards/reward.h"

namespace fulgur {

// 1 when the pattern (PCRE2's) is found anywhere in the answer, else 0. Write ^...$ for all of it: $ is the very end, also before
// a line end. \w, \d, \s and \b know ASCII; (*UCP) at the pattern's begin makes them know Unicode. Bytes that are no UTF-8 fit
// nothing. Copies share the compiled pattern. Thread-safe.
class RegexMatch {
 public:
  // Throws InputError that names the byte where the pattern cannot be understood.
  explicit RegexMatch(const std::string& pattern);
  // Invalid ("match limit: ...") when the answer takes more than `kMostSteps` or 64 MiB to decide.
  Outcome operator()(std::string_view answer) const;

  static constexpr unsigned kMostSteps = 5'000'000;  // a tenth of a second or so

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace fulgur
