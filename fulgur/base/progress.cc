#include "fulgur/base/progress.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace fulgur {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Progress::Progress(std::string name, std::string unit, int64_t total, int64_t done)
    : name_(std::move(name)),
      unit_(std::move(unit)),
      total_(total),
      first_(done),
      done_(done),
      terminal_(::isatty(2)),
      start_(std::chrono::steady_clock::now()),
      printed_(start_) {}

Progress::~Progress() { print(true); }

double Progress::rate() const { return double(done_ - first_) / std::max(1e-9, seconds_since(start_)); }

void Progress::update(int64_t done, const std::string& detail) {
  done_ = done, detail_ = detail;
  if (seconds_since(printed_) >= (terminal_ ? 0.2 : 5.0)) print(false);
}

void Progress::print(bool last) {
  if (last && seconds_since(start_) < 2 && !terminal_) return;
  printed_ = std::chrono::steady_clock::now();
  double share = total_ > 0 ? double(done_) / double(total_) : 1;
  std::string bar(20, '.');
  for (int i = 0; i < int(share * 20) && i < 20; ++i) bar[i] = '#';
  auto left =
      last ? "in " + human_time(seconds_since(start_)) : human_time(double(total_ - done_) / std::max(1e-9, rate())) + " left";
  std::fprintf(stderr, "%s%-9s [%s] %3.0f%%  %s/%s %s  %s/s  %s  %s%s", terminal_ ? "\r\033[K" : "", name_.c_str(), bar.c_str(),
               100 * share, human_count(double(done_)).c_str(), human_count(double(total_)).c_str(), unit_.c_str(),
               human_count(rate()).c_str(), left.c_str(), detail_.c_str(), terminal_ && !last ? "" : "\n");
  std::fflush(stderr);
}

std::string human_count(double value) {
  char out[32];
  if (value >= 1e9) std::snprintf(out, sizeof out, "%.2fG", value / 1e9);
  else if (value >= 1e6) std::snprintf(out, sizeof out, "%.2fM", value / 1e6);
  else if (value >= 1e4) std::snprintf(out, sizeof out, "%.1fk", value / 1e3);
  else std::snprintf(out, sizeof out, "%.0f", value);
  return out;
}

std::string human_time(double seconds) {
  char out[32];
  int whole = int(std::lround(seconds));
  if (seconds < 10) std::snprintf(out, sizeof out, "%.1fs", seconds);
  else if (whole < 60) std::snprintf(out, sizeof out, "%ds", whole);
  else if (whole < 3600) std::snprintf(out, sizeof out, "%dm %02ds", whole / 60, whole % 60);
  else std::snprintf(out, sizeof out, "%dh %02dm", whole / 3600, whole / 60 % 60);
  return out;
}

}  // namespace fulgur
