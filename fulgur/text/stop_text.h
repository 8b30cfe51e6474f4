// Ends an answer at the first of some texts, which may begin in one token and end in another.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fulgur {

class StopText {
 public:
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // What is surely before a stop. Empty once one has come.
  std::string feed(std::string_view text);
  // The end: what was held back, as the beginning of a stop.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace fulgur
