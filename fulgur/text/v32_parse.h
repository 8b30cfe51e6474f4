// What DeepSeek-V3.2 writes, behind the <think> or </think> that ends its prompt, to a message.    Spec G.4, G.6
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "fulgur/base/utf8.h"
#include "fulgur/text/message.h"
#include "fulgur/text/v32_encode.h"

namespace fulgur {

// The strict parser: what DeepSeek's own accepts, and the same of it. Arguments are JSON text, but of values said to be no
// strings, which stand in it as they were written. Throws InputError that names the byte.
Message parse_v32(std::string_view completion, ThinkingMode mode);

// A part of an answer, as it becomes known.
struct Delta {
  enum Kind { reasoning, content, call, arguments } kind;
  std::string text;  // a call's name; a part of the text or of the arguments
  size_t index = 0;  // which call
  bool operator==(const Delta&) const = default;
};

// Fed with bytes cut anywhere, it gives whole characters of reasoning, content and calls as soon as no marker can be among them.
// Of what parse_v32 accepts the parts add up to the same message, whatever the cuts. What it does not accept is read as it was
// meant: a missing or doubled think tag, blanks and line ends between tags, other quotes and orders of attributes, calls without
// their block, tags left open, text behind the calls. Markers never become text. Not thread-safe.
class StreamParser {
 public:
  using OnDelta = std::function<void(const Delta&)>;
  StreamParser(ThinkingMode mode, OnDelta on_delta);

  void feed(std::string_view bytes);
  // The end of the text: what was held back comes out, and calls left open are closed.
  void finish();
  // All that came.
  const Message& message() const { return message_; }

 private:
  enum class State { reasoning, content, behind, block, invoke, between, parameter, value, done };

  void run(bool last);
  bool read_text(bool last);
  bool read_marker(bool last);
  bool read_block(bool last);
  bool read_name(bool last);
  bool read_between(bool last);
  bool read_parameter(bool last);
  bool read_sloppy_parameter(size_t end);
  bool read_value(bool last);
  void give_value(std::string_view text);
  void begin_value(std::string_view name, bool string);
  void end_value();
  void end_call();
  void emit(Delta::Kind kind, std::string_view text);
  void take(size_t bytes) { held_.erase(0, bytes); }
  bool go(State state, size_t bytes);

  OnDelta on_delta_;
  Utf8Stream characters_;
  State state_;
  std::string held_;  // came, but is not read yet
  Message message_;
  bool in_call_ = false, first_argument_ = true, string_ = false;  // string_: the value is of a string
  bool dropped_ = false;                                           // a marker, since the last text
};

}  // namespace fulgur
