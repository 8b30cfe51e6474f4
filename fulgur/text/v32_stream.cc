// The streaming parser: a marker is looked for in what is held, and what cannot be part of one is given out.
#include <algorithm>
#include <cctype>
#include <initializer_list>
#include <utility>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/text/v32_format.h"
#include "fulgur/text/v32_parse.h"

namespace fulgur {
namespace {

using namespace v32;
using Markers = std::initializer_list<std::string_view>;

constexpr std::string_view kOpened = "<｜DSML｜", kClosed = "</｜DSML｜", kBar = "｜";
constexpr std::string_view kBlockEnd = "</｜DSML｜function_calls";  // with or without its '>'
constexpr std::string_view kValueEnd = "</｜DSML｜parameter", kValueEndLine = "<\n/｜DSML｜parameter";
constexpr size_t kNone = std::string_view::npos;

struct Found {
  size_t at = kNone;
  std::string_view marker;
};

// The first; of those at one place the longest.
Found first_of(std::string_view text, Markers markers) {
  Found out;
  for (auto marker : markers) {
    size_t at = text.find(marker);
    if (at < out.at || (at == out.at && at != kNone && marker.size() > out.marker.size())) out = {at, marker};
  }
  return out;
}

// Where the longest end of `text` begins that may become a marker.
size_t begun(std::string_view text, Markers markers) {
  size_t longest = 0;
  for (auto marker : markers)
    for (size_t size = std::min(text.size(), marker.size() - 1); size > longest; --size)
      if (text.ends_with(marker.substr(0, size))) longest = size;
  return text.size() - longest;
}

// Two line ends before a block belong to it.
size_t without_line_ends(std::string_view text, size_t end) {
  for (int i = 0; i < 2 && end > 0 && text[end - 1] == '\n'; ++i) --end;
  return end;
}

bool in_text(const std::string& text, size_t at, std::string_view part) {
  return std::string_view(text).substr(at).starts_with(part);
}

// An attribute of a tag, in any quotes or none; empty where there is none.
std::string_view attribute(std::string_view tag, std::string_view name) {
  constexpr std::string_view kBlanks = " \t\r\n";
  for (size_t at = tag.find(name); at != kNone; at = tag.find(name, at + 1)) {
    size_t equals = tag.find_first_not_of(kBlanks, at + name.size());
    if ((at > 0 && kBlanks.find(tag[at - 1]) == kNone) || equals == kNone || tag[equals] != '=') continue;
    size_t value = tag.find_first_not_of(kBlanks, equals + 1);
    if (value == kNone) return {};
    bool quoted = tag[value] == '"' || tag[value] == '\'';
    size_t end = quoted ? tag.find(tag[value], value + 1) : tag.find_first_of(" \t\r\n>", value);
    if (quoted && end == kNone) return {};
    return tag.substr(value + quoted, end - value - quoted);
  }
  return {};
}

bool is_json(std::string_view value) {
  try {
    return !parse_python_json(value, "").is_string();
  } catch (const InputError&) {
    return false;
  }
}

}  // namespace

StreamParser::StreamParser(ThinkingMode mode, OnDelta on_delta)
    : on_delta_(std::move(on_delta)),
      state_(mode == ThinkingMode::thinking ? State::reasoning : State::content) {
  message_.role = Role::assistant;
}

void StreamParser::feed(std::string_view bytes) {
  held_ += characters_.feed(bytes);
  run(/*last=*/false);
}

void StreamParser::finish() {
  held_ += characters_.finish();
  run(/*last=*/true);
  if (state_ == State::value) end_value();
  if (in_call_) end_call();
  held_.clear();
  state_ = State::done;
}

void StreamParser::run(bool last) {
  auto step = [&] {
    switch (state_) {
      case State::reasoning:
      case State::content:
      case State::behind:
        return read_text(last);
      case State::block:
        return read_block(last);
      case State::invoke:
        return read_name(last);
      case State::between:
        return read_between(last);
      case State::parameter:
        return read_parameter(last);
      case State::value:
        return read_value(last);
      case State::done:
        held_.clear();
        return false;
    }
    return false;
  };
  while (step()) {
  }
}

bool StreamParser::go(State state, size_t bytes) {
  take(bytes);
  state_ = state;
  return true;
}

void StreamParser::emit(Delta::Kind kind, std::string_view text) {
  if (kind == Delta::content && state_ == State::behind) {  // blanks behind the calls are nobody's words
    text.remove_prefix(std::min(text.size(), text.find_first_not_of(" \t\r\n")));
    if (!text.empty()) state_ = State::content;
  }
  if (text.empty() && kind != Delta::call) return;
  std::string apart;
  if (bool of_text = kind == Delta::reasoning || kind == Delta::content; of_text && std::exchange(dropped_, false)) {
    const auto& said = kind == Delta::reasoning ? message_.reasoning_content : message_.content;
    if (begun(said, {kMarker, kBos, kEos, kThink, kThinkEnd, kOpened, kClosed}) < said.size()) text = apart = cat("\n", text);
  }
  if (kind == Delta::reasoning) message_.reasoning_content += text;
  if (kind == Delta::content) message_.content += text;
  if (kind == Delta::call) message_.tool_calls.push_back({std::string(text), "", ""});
  if (kind == Delta::arguments) message_.tool_calls.back().arguments += text;
  bool of_call = kind == Delta::call || kind == Delta::arguments;
  if (on_delta_) on_delta_({kind, std::string(text), of_call ? message_.tool_calls.size() - 1 : 0});
}

// Reasoning or content up to the next marker.
bool StreamParser::read_text(bool last) {
  size_t at = first_of(held_, {kThink, kThinkEnd, kBos, kEos, kOpened, kClosed, kMarker}).at;
  auto kind = state_ == State::reasoning ? Delta::reasoning : Delta::content;
  if (at != kNone) {
    bool whole = false;
    for (auto marker : {kCalls, kInvoke}) whole |= in_text(held_, at, marker);
    if (!whole && !last && (begun(std::string_view(held_).substr(at), {kCalls, kInvoke}) == 0)) at = kNone;  // it may become one
    else {
      emit(kind, std::string_view(held_).substr(0, whole ? without_line_ends(held_, at) : at));
      take(at);
      return read_marker(last);
    }
  }
  size_t end = begun(held_, {kThink, kThinkEnd, kBos, kEos, kCalls, kInvoke, kClosed, kMarker});
  if (last) end = held_.find(kBar, end) == kNone ? held_.size() : end;  // what is surely of a marker is dropped
  else end = without_line_ends(held_, end);
  emit(kind, std::string_view(held_).substr(0, end));
  take(last ? held_.size() : end);
  return false;
}

// The marker at the front, in text. What stands around one that is dropped may not become another.
bool StreamParser::read_marker(bool last) {
  dropped_ = true;
  if (in_text(held_, 0, kEos)) return go(State::done, 0);
  if (in_text(held_, 0, kThinkEnd)) return go(state_ == State::reasoning ? State::content : state_, kThinkEnd.size());
  if (in_text(held_, 0, kThink)) return go(State::reasoning, kThink.size());
  if (in_text(held_, 0, kBos)) return go(state_, kBos.size());
  if (in_text(held_, 0, kCalls)) return go(State::block, kCalls.size());
  if (in_text(held_, 0, kInvoke)) return go(State::block, 0);
  if (in_text(held_, 0, kMarker)) return go(state_, kMarker.size());
  size_t end = held_.find_first_of(">\n");  // a tag that has no place here
  if (end == kNone && !last) return false;
  return go(state_, end == kNone ? held_.size() : end + (held_[end] == '>'));
}

bool StreamParser::read_block(bool last) {
  auto found = first_of(held_, {kInvoke, kBlockEnd, kEos});
  if (found.at == kNone) {
    take(begun(held_, {kInvoke, kBlockEnd, kEos}));
    return false;
  }
  size_t end = found.at + found.marker.size();
  if (found.marker == kEos) return go(State::done, found.at);
  if (found.marker == kInvoke) return go(State::invoke, end);
  if (end == held_.size() && !last) return false;
  return go(State::behind, end + in_text(held_, end, ">"));
}

// A call's name, once the tag behind it has come.
bool StreamParser::read_name(bool last) {
  auto found = first_of(held_, {kParameter, kInvokeEnd});
  if (found.at == kNone && !last) return false;
  size_t end = std::min(found.at, held_.size());
  auto header = std::string_view(held_).substr(0, end);
  auto exact = call_name(header);
  if (!exact) end = std::min(end, first_of(header, {kInvoke, kBlockEnd, kEos}).at);
  std::string name(exact ? *exact : attribute(header.substr(0, end), "name"));
  if (!exact && last && end == held_.size() && name.empty()) return false;  // the text ends in it
  in_call_ = true, first_argument_ = true;
  emit(Delta::call, name);
  return go(State::between, end);
}

// Up to the next parameter, or the end of the call.
bool StreamParser::read_between(bool last) {
  auto found = first_of(held_, {kParameter, kInvokeEnd, kInvoke, kBlockEnd, kEos});
  if (found.at == kNone) {
    take(last ? held_.size() : begun(held_, {kParameter, kInvokeEnd, kInvoke, kBlockEnd, kEos}));
    return false;
  }
  if (found.marker == kParameter) return go(State::parameter, found.at + kParameter.size());
  end_call();
  return go(State::block, found.at + (found.marker == kInvokeEnd ? kInvokeEnd.size() : 0));
}

// A parameter's attributes. What is not written as it should be is read when its end is known.
bool StreamParser::read_parameter(bool last) {
  auto split = first_of(held_, {kIsString, kIsOther});
  size_t end = held_.find(kParameterEnd);
  if (split.at < end && in_text(held_, 0, kName)) {
    begin_value(std::string_view(held_).substr(kName.size(), split.at - std::min(split.at, kName.size())),
                split.marker == kIsString);
    return go(State::value, split.at + split.marker.size());
  }
  if (end == kNone && !last) return false;
  size_t other = first_of(held_, {kInvokeEnd, kBlockEnd, kParameter, kEos}).at;
  return read_sloppy_parameter(std::min(end, other));
}

bool StreamParser::read_sloppy_parameter(size_t end) {
  size_t open = held_.find('>');
  if (open >= end || open == kNone) return go(State::between, std::min(end, held_.size()));  // the text ends in it
  std::string tag = held_.substr(0, open), value = held_.substr(open + 1, end - open - 1), string(attribute(tag, "string"));
  if (in_text(held_, std::min(end, held_.size()), kParameterEnd) && value.ends_with('<')) value.pop_back();
  std::transform(string.begin(), string.end(), string.begin(), [](unsigned char c) { return char(std::tolower(c)); });
  begin_value(attribute(tag, "name"), string.empty() ? !is_json(value) : string != "false");
  give_value(value);
  end_value();
  take(std::min(end, held_.size()));
  return go(State::between, in_text(held_, 0, kParameterEnd) ? kParameterEnd.size() : 0);
}

// A value, up to the one marker that ends it. Others may be part of it: they are held until that is known.
bool StreamParser::read_value(bool last) {
  std::string_view held = held_;
  size_t end = held.find(kParameterEnd);
  if (end != kNone) {
    size_t tail = held.substr(0, end).ends_with("<\n") ? 2 : end > 0 && held[end - 1] == '<' ? 1 : 0;
    give_value(held.substr(0, end - tail));
    end_value();
    return go(State::between, end + kParameterEnd.size());
  }
  size_t other = first_of(held, {kInvokeEnd, kBlockEnd, kParameter, kEos}).at;
  size_t safe =
      other != kNone ? other : begun(held, {kInvokeEnd, kBlockEnd, kParameter, kEos, kValueEnd, kValueEndLine, kParameterEnd});
  if (last && other == kNone && held.find(kBar, safe) == kNone) safe = held.size();  // no marker after all
  else if (safe > 0 && held[safe - 1] == '\n') --safe;                               // before one it is not of the value
  give_value(held.substr(0, safe));
  take(safe);
  if (!last) return false;
  end_value();
  return go(State::between, 0);
}

void StreamParser::give_value(std::string_view text) {
  emit(Delta::arguments, string_ ? escape_python_json(text) : std::string(text));
}

void StreamParser::begin_value(std::string_view name, bool string) {
  string_ = string;
  emit(Delta::arguments, cat(first_argument_ ? "{" : ", ", '"', escape_python_json(name), "\": ", string ? "\"" : ""));
  first_argument_ = false;
}

void StreamParser::end_value() {
  if (string_) emit(Delta::arguments, "\"");
}

void StreamParser::end_call() {
  emit(Delta::arguments, first_argument_ ? "{}" : "}");
  in_call_ = false;
}

}  // namespace fulgur
