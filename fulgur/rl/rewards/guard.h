// A reward under a time limit, which may throw, hang or give no number without harm to the run.
#pragma once

#include <functional>

#include "fulgur/rl/rewards/reward.h"

namespace fulgur {

// What `reward` says, or an invalid outcome: "time limit: ..." when it takes longer, "exception: ..." when it throws, "no number:
// ..." when its score is infinite or NaN. It runs on a thread of its own, and a thread cannot be ended from outside: one that
// hangs is left behind with what `reward` holds, so `reward` must own or share (shared_ptr) all it uses and refer to nothing of
// the caller's. When `kMostLeftBehind` hang at once no other is begun: "left behind: ...". Thread-safe. Throws InputError unless
// `seconds` is above 0.
Outcome run_reward(std::function<Outcome()> reward, double seconds);

constexpr int kMostLeftBehind = 64;

}  // namespace fulgur
