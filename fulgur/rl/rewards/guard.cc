#include "fulgur/rl/rewards/guard.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

// Shared by the caller and the thread; whoever leaves last frees it.
struct Run {
  std::mutex mutex;
  std::condition_variable changed;
  std::optional<Outcome> outcome;
  bool left_behind = false;
};

std::atomic<int> left_behind = 0;

Outcome outcome_of(const std::function<Outcome()>& reward) {
  try {
    auto outcome = reward();
    if (outcome.score && !std::isfinite(*outcome.score)) return invalid_outcome(cat("no number: the score is ", *outcome.score));
    return outcome;
  } catch (const std::exception& error) {
    return invalid_outcome(cat("exception: ", error.what()));
  } catch (...) {
    return invalid_outcome("exception: of an unknown type");
  }
}

void run(Run& run, std::function<Outcome()> reward) {
  auto outcome = outcome_of(reward);
  reward = nullptr;  // a caller that gets its outcome finds what it shared let go
  std::lock_guard lock(run.mutex);
  run.outcome = std::move(outcome);
  if (run.left_behind) --left_behind;
  run.changed.notify_one();
}

}  // namespace

Outcome run_reward(std::function<Outcome()> reward, double seconds) {
  FULGUR_CHECK(seconds > 0, "[rewards] time limit: expected seconds above 0, got ", seconds);
  if (left_behind >= kMostLeftBehind) return invalid_outcome(cat("left behind: ", kMostLeftBehind, " rewards hang already"));
  auto limit = std::chrono::duration<double>(std::min(seconds, 1e6));  // within what clocks can add
  auto shared = std::make_shared<Run>();
  try {
    std::thread([shared, reward = std::move(reward)]() mutable { run(*shared, std::move(reward)); }).detach();
  } catch (const std::system_error& error) {
    return invalid_outcome(cat("no thread: ", error.what()));
  }
  std::unique_lock lock(shared->mutex);
  if (shared->changed.wait_for(lock, limit, [&] { return shared->outcome.has_value(); })) return std::move(*shared->outcome);
  shared->left_behind = true;
  ++left_behind;
  return invalid_outcome(cat("time limit: no answer within ", seconds, " s"));
}

}  // namespace fulgur
