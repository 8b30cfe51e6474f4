#include "fulgur/text/stop_text.h"

#include <algorithm>
#include <utility>

namespace fulgur {

std::string StopText::feed(std::string_view text) {
  if (stopped_) return "";
  held_ += text;
  size_t first = std::string::npos, begun = held_.size();
  for (const auto& stop : stops_) {
    if (stop.empty()) continue;
    first = std::min(first, held_.find(stop));
    for (size_t size = std::min(held_.size(), stop.size() - 1); size > 0; --size)
      if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, size))) {
        begun = std::min(begun, held_.size() - size);
        break;
      }
  }
  stopped_ = first != std::string::npos;
  std::string out = held_.substr(0, std::min(first, begun));
  held_.erase(0, out.size());
  return out;
}

std::string StopText::finish() { return stopped_ ? "" : std::exchange(held_, {}); }

}  // namespace fulgur
