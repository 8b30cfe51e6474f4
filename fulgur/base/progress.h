// Progress of anything that takes more than two seconds: one line rewritten in place on a terminal, plain lines every
// few seconds elsewhere. Always on standard error.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace fulgur {

class Progress {
 public:
  // `unit` names what is counted: "tok", "MB". `done` may start above 0 when a stage is resumed.
  Progress(std::string name, std::string unit, int64_t total, int64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  // `detail` follows rate and time left: "loss 2.31".
  void update(int64_t done, const std::string& detail = "");
  double rate() const;  // units a second since the start

 private:
  void print(bool last);
  std::string name_, unit_, detail_;
  int64_t total_, first_, done_;
  bool terminal_;
  std::chrono::steady_clock::time_point start_, printed_;
};

std::string human_count(double value);   // 3.1M
std::string human_time(double seconds);  // 4m 05s

}  // namespace fulgur
