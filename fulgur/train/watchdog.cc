#include "fulgur/train/watchdog.h"

namespace fulgur {

using Clock = std::chrono::steady_clock;

Watchdog::Watchdog(double seconds, std::function<void(const std::string&, double)> on_hang)
    : seconds_(seconds),
      on_hang_(std::move(on_hang)),
      since_(Clock::now()) {
  if (seconds_ > 0) thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::alive(std::string what) {
  std::lock_guard lock(mutex_);
  doing_ = std::move(what), since_ = Clock::now();
}

void Watchdog::run() {
  std::unique_lock lock(mutex_);
  auto limit = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds_));
  while (!stop_) {
    if (Clock::now() >= since_ + limit) return on_hang_(doing_, seconds_);
    changed_.wait_until(lock, since_ + limit);
  }
}

}  // namespace fulgur
