#include "fulgur/base/python_json.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

class Reader {
 public:
  Reader(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  Json read() {
    size_t bad = invalid_utf8(text_);
    if (bad < text_.size()) at_ = bad, fail("UTF-8");
    skip_space();
    Json out = value(0);
    skip_space();
    if (at_ < text_.size()) fail("nothing behind the value");
    return out;
  }

 private:
  [[noreturn]] void fail(const std::string& expected) const {
    std::string found = at_ < text_.size() ? cat("'", valid_utf8(text_.substr(at_, 20)), "'") : "the end of the text";
    throw InputError(cat("[json] ", name_, ": byte ", at_, ": expected ", expected, ", got ", found));
  }
  char next() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  Json value(int depth) {
    if (depth > kDeepestJson) fail(cat("at most ", kDeepestJson, " brackets inside each other"));
    if (next() == '{') return object(depth);
    if (next() == '[') return array(depth);
    if (next() == '"') return string();
    if (take("null")) return nullptr;
    if (take("true")) return true;
    if (take("false")) return false;
    if (take("NaN")) return std::numeric_limits<double>::quiet_NaN();
    if (take("Infinity")) return std::numeric_limits<double>::infinity();
    if (take("-Infinity")) return -std::numeric_limits<double>::infinity();
    return number();
  }

  Json object(int depth) {
    Json out = Json::object();
    ++at_, skip_space();
    if (take("}")) return out;
    do {
      skip_space();
      if (next() != '"') fail("a key in double quotes");
      std::string key = string();
      skip_space();
      if (!take(":")) fail("':'");
      skip_space();
      out[key] = value(depth + 1);
      skip_space();
    } while (take(","));
    if (!take("}")) fail("',' or '}'");
    return out;
  }

  Json array(int depth) {
    Json out = Json::array();
    ++at_, skip_space();
    if (take("]")) return out;
    do {
      skip_space();
      out.push_back(value(depth + 1));
      skip_space();
    } while (take(","));
    if (!take("]")) fail("',' or ']'");
    return out;
  }

  std::string string() {
    std::string out;
    ++at_;
    while (!take("\"")) {
      if (at_ >= text_.size()) fail("a string's closing quote");
      if (uint8_t(next()) < 0x20) fail("no control character in a string");
      if (take("\\")) append_escaped(out);
      else out += text_[at_++];
    }
    return out;
  }

  void append_escaped(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    if (take("u")) {
      uint32_t c = four_digits();
      if (c >= 0xd800 && c < 0xdc00 && take("\\u")) {
        uint32_t low = four_digits();
        if (low < 0xdc00 || low >= 0xe000) fail("the other half of a surrogate pair");
        c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
      }
      if (c >= 0xd800 && c < 0xe000) fail("a whole surrogate pair");
      return append_utf8(out, c);
    }
    auto which = at_ < text_.size() ? kNames.find(text_[at_]) : std::string_view::npos;
    if (which == std::string_view::npos) fail("an escape of JSON");
    out += kMeant[which], ++at_;
  }

  uint32_t four_digits() {
    uint32_t c = 0;
    auto digits = text_.substr(at_, 4);
    auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), c, 16);
    if (digits.size() < 4 || error != std::errc() || end != digits.data() + 4) fail("four hexadecimal digits");
    at_ += 4;
    return c;
  }

  // Digits from `at` on.
  size_t digits(size_t at) const {
    size_t end = at;
    while (end < text_.size() && text_[end] >= '0' && text_[end] <= '9') ++end;
    return end - at;
  }

  Json number() {
    size_t end = at_ + (next() == '-'), whole = digits(end);
    if (whole == 0) fail("a value");
    end += text_[end] == '0' ? 1 : whole;
    bool integer = true;
    if (end < text_.size() && text_[end] == '.' && digits(end + 1) > 0) integer = false, end += 1 + digits(end + 1);
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      size_t from = end + 1 + (end + 1 < text_.size() && (text_[end + 1] == '+' || text_[end + 1] == '-'));
      if (digits(from) > 0) integer = false, end = from + digits(from);
    }
    auto written = text_.substr(at_, end - at_);
    at_ = end;
    return integer ? whole_number(written) : real_number(written);
  }

  static Json whole_number(std::string_view written) {
    int64_t small;
    uint64_t large;
    auto last = written.data() + written.size();
    if (std::from_chars(written.data(), last, small).ec == std::errc()) return small;
    if (std::from_chars(written.data(), last, large).ec == std::errc()) return large;
    return Json::binary({written.begin(), written.end()});
  }

  static Json real_number(std::string_view written) {
    double value = 0;
    bool beyond = std::from_chars(written.data(), written.data() + written.size(), value).ec == std::errc::result_out_of_range;
    if (beyond) value = std::strtod(std::string(written).c_str(), nullptr);  // 0 or infinity, as Python has it
    return value;
  }

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
};

// repr: the fewest digits that mean this number; an exponent below -4 and from 16 on.
std::string real_text(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  char room[40];
  auto shortest = std::to_chars(room, room + sizeof room, value, std::chars_format::scientific);
  std::string text(room, shortest.ptr);
  int exponent = std::atoi(text.c_str() + text.find('e') + 1);
  if (exponent < -4 || exponent >= 16) return text;
  auto fixed = std::to_chars(room, room + sizeof room, value, std::chars_format::fixed);
  text.assign(room, fixed.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

void append(const Json& value, std::string& out) {
  switch (value.type()) {
    case Json::value_t::object: {
      const char* between = "{";
      for (const auto& [key, member] : value.items()) {
        out += cat(between, '"', escape_python_json(key), "\": ");
        append(member, out);
        between = ", ";
      }
      out += value.empty() ? "{}" : "}";
      break;
    }
    case Json::value_t::array: {
      const char* between = "[";
      for (const auto& item : value) {
        out += between;
        append(item, out);
        between = ", ";
      }
      out += value.empty() ? "[]" : "]";
      break;
    }
    case Json::value_t::string:
      out += cat('"', escape_python_json(value.get_ref<const std::string&>()), '"');
      break;
    case Json::value_t::number_float:
      out += real_text(value.get<double>());
      break;
    case Json::value_t::binary:
      out.append(value.get_binary().begin(), value.get_binary().end());
      break;
    default:
      out += value.dump();
  }
}

}  // namespace

Json parse_python_json(std::string_view text, const std::string& name) { return Reader(text, name).read(); }

std::string dump_python_json(const Json& value) {
  std::string out;
  append(value, out);
  return out;
}

std::string escape_python_json(std::string_view text) {
  constexpr std::string_view kNames = "\"\\bfnrt", kMeant = "\"\\\b\f\n\r\t";
  std::string out;
  for (char c : text) {
    auto which = kMeant.find(c);
    if (which != std::string_view::npos) out += {'\\', kNames[which]};
    else if (uint8_t(c) < 0x20) out += cat("\\u00", c < 0x10 ? '0' : '1', "0123456789abcdef"[c % 16]);
    else out += c;
  }
  return out;
}

}  // namespace fulgur
