// A thread that ends a process whose steps have stopped coming.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace fulgur {

class Watchdog {
 public:
  // Calls on_hang(what, seconds) from its own thread, once, when alive() was not called for `seconds`; 0: never.
  Watchdog(double seconds, std::function<void(const std::string&, double)> on_hang);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The process goes on; `what` it is about to do. Thread-safe.
  void alive(std::string what);

 private:
  void run();
  double seconds_;
  std::function<void(const std::string&, double)> on_hang_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  std::string doing_;
  std::chrono::steady_clock::time_point since_;
  std::thread thread_;
};

}  // namespace fulgur
