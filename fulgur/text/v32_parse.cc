// The strict parser, in the steps of the reference's parse_message_from_completion_text.
#include "fulgur/text/v32_parse.h"

#include <algorithm>
#include <initializer_list>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/text/v32_format.h"

namespace fulgur {
namespace {

using namespace v32;

class Strict {
 public:
  Strict(std::string_view text, ThinkingMode mode) : text_(text), thinking_(mode == ThinkingMode::thinking) {}

  Message read() {
    Message out;
    out.role = Role::assistant;
    if (thinking_) {
      out.reasoning_content = until({kThinkEnd, block_});
      check(stop_ == kThinkEnd, "</think> behind the reasoning");
    }
    out.content = until({kEos, block_});
    check(!stop_.empty(), "the end of sentence, or a block of calls");
    if (stop_ == block_) {
      read_calls(out);
      check(until({kEos}).empty(), "nothing but the end of sentence behind the calls");
    }
    check(at_ == text_.size(), "nothing behind the end of sentence");
    for (auto marker : {kBos, kEos, kThink, kThinkEnd, kMarker})
      for (const auto& part : {out.reasoning_content, out.content})
        FULGUR_CHECK(part.find(marker) == std::string::npos, "[parse] expected text without '", marker, "', got one in it");
    return out;
  }

 private:
  // Text up to the first of these, which is passed; stop_ says which, and is empty at the end of the text.
  std::string_view until(std::initializer_list<std::string_view> stops) {
    size_t first = text_.size(), begin = from_ = at_;
    stop_ = {};
    for (auto stop : stops)
      if (size_t found = text_.find(stop, begin); found < first) first = found, stop_ = stop;
    at_ = first + stop_.size();
    return text_.substr(begin, first - begin);
  }

  void check(bool holds, const char* expected) const {
    FULGUR_CHECK(holds, "[parse] byte ", from_, ": expected ", expected, ", got '", valid_utf8(text_.substr(from_, 60)), "'");
  }

  void read_calls(Message& out) {
    while (at_ < text_.size()) {
      check(until({kInvoke, kCallsEnd}) == ">\n", "'>' and a line end behind a tag of calls");
      if (stop_ == kCallsEnd) return;
      check(!stop_.empty(), "a call, or the end of the calls");
      out.tool_calls.push_back({name(until({kParameter, kInvokeEnd})), arguments(), ""});
    }
  }

  std::string name(std::string_view header) const {
    auto found = call_name(header);
    check(found.has_value(), "name=\"...\" of a call, '>' and a line end");
    return std::string(*found);
  }

  std::string arguments() {
    std::vector<std::string> names;
    std::string out = "{";
    while (stop_ == kParameter) {
      auto parameter = until({kParameterEnd});
      if (parameter.ends_with("<\n")) parameter.remove_suffix(1);
      size_t split = std::min(parameter.find(kIsString), parameter.find(kIsOther));
      check(!stop_.empty() && split < parameter.size() && parameter.starts_with(kName) && parameter.ends_with('<'),
            "name=\"...\" string=\"true|false\">...</ of a parameter");
      bool string = parameter.substr(split).starts_with(kIsString);
      std::string key(parameter.substr(kName.size(), split - kName.size()));
      auto value = parameter.substr(split + (string ? kIsString : kIsOther).size());
      value.remove_suffix(1);
      check(std::find(names.begin(), names.end(), key) == names.end(), "each parameter once");
      out += cat(names.empty() ? "" : ", ", '"', escape_python_json(key), "\": ");
      out += string ? cat('"', escape_python_json(value), '"') : std::string(value);
      names.push_back(key);
      check(until({kParameter, kInvokeEnd}) == ">\n", "'>' and a line end behind a parameter");
    }
    return out + "}";
  }

  const std::string block_ = cat("\n\n", kCalls);
  std::string_view text_, stop_;
  size_t at_ = 0, from_ = 0;
  bool thinking_;
};

}  // namespace

Message parse_v32(std::string_view completion, ThinkingMode mode) { return Strict(completion, mode).read(); }

}  // namespace fulgur
