// What this machine can do, and how long a piece of work takes beside it. The machine is shared, and another one a second later:
// peaks are measured around each repetition.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/ops/peaks.h"

namespace fulgur::cli {

inline double time_once(const std::function<void()>& work) {
  auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

inline double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// now() measures what bounds a piece of work and says how long that takes at least; best() is the best seen.
class Limits {
 public:
  Limits() : flops_(ops::peak_flops(1)) {
    for (int round = 0; round < 4; ++round) read();
  }

  double now(double flops, double bytes) {
    if (flops / flops_ < bytes / bandwidth_) return std::max(bytes / read(), flops / flops_);
    double peak = ops::peak_flops(0.1);  // long enough to find its best
    flops_ = std::max(flops_, peak);
    return std::max(flops / peak, bytes / bandwidth_);
  }
  double best(double flops, double bytes) const { return std::max(flops / flops_, bytes / bandwidth_); }
  double flops() const { return flops_; }
  double bandwidth() const { return bandwidth_; }

 private:
  double read() {
    double found = memory_.bandwidth();
    bandwidth_ = std::max(bandwidth_, found);
    return found;
  }

  ops::Memory memory_{int64_t(2) << 30};
  double flops_, bandwidth_ = 0;
};

// One repetition, and the least it could have taken: by the peaks before it and behind it.
struct Sample {
  double seconds, limit;
};

inline Sample sample(Limits& limits, double flops, double bytes, const std::function<double()>& seconds_of) {
  double before = limits.now(flops, bytes), seconds = seconds_of();
  return {seconds, (before + limits.now(flops, bytes)) / 2};
}

// {name, case, threads, seconds, flops, bytes, share}, medians.
Json result_json(const std::string& name, const std::string& label, const std::vector<Sample>& samples, double flops,
                 double bytes);

// The last line of every benchmark; `earlier` results are compared where there are any, and `also` goes beside the results.
void finish_bench(const Limits& limits, Json results, const Json& earlier, const Json& also = Json::object());

}  // namespace fulgur::cli
