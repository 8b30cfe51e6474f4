// Finds a rank that works much longer than the others, step after step.
#pragma once

#include <algorithm>
#include <vector>

namespace fulgur {

class Stragglers {
 public:
  // Seconds of work of each rank in a step. The rank that took more than twice the others' median five times in a row,
  // said once for every hundred such steps; -1 when there is none.
  int step(const std::vector<double>& seconds) {
    if (seconds.size() < 2) return -1;
    int slowest = int(std::max_element(seconds.begin(), seconds.end()) - seconds.begin());
    auto others = seconds;
    others.erase(others.begin() + slowest);
    std::nth_element(others.begin(), others.begin() + others.size() / 2, others.end());
    median_ = others[others.size() / 2];
    if (seconds[slowest] < 2 * median_ || seconds[slowest] < median_ + 0.05) return in_a_row_ = 0, -1;
    in_a_row_ = slowest == last_ ? in_a_row_ + 1 : 1;
    last_ = slowest;
    return in_a_row_ % 100 == 5 ? slowest : -1;
  }
  double median() const { return median_; }

 private:
  int last_ = -1, in_a_row_ = 0;
  double median_ = 0;
};

}  // namespace fulgur
