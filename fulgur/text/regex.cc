#include "fulgur/text/regex.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

const CodePoints kDigits{{'0', '9'}}, kWord{{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}},
    kSpace{{9, 13},          {32, 32},         {0xa0, 0xa0},     {0x1680, 0x1680}, {0x2000, 0x200a},
           {0x2028, 0x2029}, {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}, {0xfeff, 0xfeff}},
    kLineEnds{{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}};

class Reader {
 public:
  Reader(std::string_view text, Expr (*character)(const CodePoints&)) : text_(text), character_(character) {}

  Expr read() {
    size_t bad = invalid_utf8(text_);
    if (bad < text_.size()) at_ = bad, fail("UTF-8");
    auto choices = alternatives(/*outermost=*/true);
    if (at_ < text_.size()) fail("an expression");
    return either(std::move(choices));
  }

 private:
  [[noreturn]] void fail(const char* expected) const {
    throw InputError(cat("[grammar] pattern '", valid_utf8(text_), "': byte ", at_, ": expected ", expected, ", got ",
                         at_ < text_.size() ? cat("'", valid_utf8(text_.substr(at_, 8)), "'") : "its end"));
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }
  bool more() const { return at_ < text_.size(); }

  // Each alternative of the outermost level has ends of its own.
  std::vector<Expr> alternatives(bool outermost) {
    if (++depth_ > 200) fail("at most 200 groups inside each other");
    std::vector<Expr> choices;
    do {
      std::vector<Expr> parts;
      bool begins = outermost && take("^");
      if (outermost && !begins) parts.push_back(repeat(character_({{0, 0x10ffff}}), 0));
      while (more() && text_[at_] != '|' && text_[at_] != ')' && !(outermost && at_end())) parts.push_back(repeated());
      if (outermost && !take("$")) parts.push_back(repeat(character_({{0, 0x10ffff}}), 0));
      choices.push_back(sequence(std::move(parts)));
    } while (take("|"));
    --depth_;
    return choices;
  }
  bool at_end() const { return text_[at_] == '$' && (at_ + 1 == text_.size() || text_[at_ + 1] == '|'); }

  Expr repeated() {
    Expr part = atom();
    int64_t least = 1, most = 1;
    size_t before = at_;
    if (take("*")) least = 0, most = -1;
    else if (take("+")) most = -1;
    else if (take("?")) least = 0;
    else if (take("{")) {
      least = most = count();
      if (take(",")) most = more() && text_[at_] == '}' ? -1 : count();
      if (!take("}")) fail("'}'");
      if (most >= 0 && least > most) at_ = before, fail("a count whose ends are in order");
    } else return part;
    take("?");  // which of two readings is found first makes no difference to what fits
    return repeat(std::move(part), least, most);
  }

  int64_t count() {
    int64_t out = 0;
    auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), out);
    if (error != std::errc() || out < 0 || out > 100000) fail("a count of at most 100000");
    at_ = size_t(end - text_.data());
    return out;
  }

  Expr atom() {
    if (take("(")) {
      if (take("?") && !take(":")) fail("a group (...) or (?:...)");
      auto choices = alternatives(/*outermost=*/false);
      if (!take(")")) fail("')'");
      return either(std::move(choices));
    }
    if (take("[")) return character_(bracket());
    if (take(".")) return character_(complement(kLineEnds));
    if (std::string_view("*+?{^$").find(text_[at_]) != std::string_view::npos) fail("something to repeat, or an escape of it");
    if (text_[at_] == '\\') return character_(escape());
    uint32_t c = code_point();
    return character_({{c, c}});
  }

  uint32_t code_point() { return next_code_point(text_, at_); }

  CodePoints escape() {
    ++at_;
    if (!more()) fail("a character behind \\");
    char c = text_[at_];
    if (c == 'd' || c == 'D' || c == 'w' || c == 'W' || c == 's' || c == 'S') {
      ++at_;
      const auto& set = c == 'd' || c == 'D' ? kDigits : c == 'w' || c == 'W' ? kWord : kSpace;
      return c < 'a' ? complement(set) : set;
    }
    constexpr std::string_view kNames = "tnrfv0", kMeant{"\t\n\r\f\v\0", 6};
    if (size_t which = kNames.find(c); which != std::string_view::npos)
      return ++at_, CodePoints{{uint32_t(kMeant[which]), uint32_t(kMeant[which])}};
    if (c == 'x' || c == 'u') {
      uint32_t code = 0;
      size_t digits = c == 'x' ? 2 : 4;
      auto text = text_.substr(at_ + 1, digits);
      auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), code, 16);
      if (text.size() < digits || error != std::errc() || end != text.data() + digits)
        fail("hexadecimal digits behind \\x or \\u");
      at_ += 1 + digits;
      return {{code, code}};
    }
    if ((c >= '1' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) fail("an escape of a character or a class");
    uint32_t code = code_point();
    return {{code, code}};
  }

  CodePoints bracket() {
    CodePoints out;
    bool negated = take("^");
    while (!take("]")) {
      if (!more()) fail("']'");
      auto first = one();
      bool range = first.size() == 1 && first[0].first == first[0].second && at_ + 1 < text_.size() && text_[at_] == '-' &&
                   text_[at_ + 1] != ']';
      if (!range) {
        out.insert(out.end(), first.begin(), first.end());
        continue;
      }
      ++at_;
      auto last = one();
      if (last.size() != 1 || last[0].first != last[0].second || last[0].first < first[0].first)
        fail("a range whose ends are in order");
      out.push_back({first[0].first, last[0].first});
    }
    return negated ? complement(out) : out;
  }
  CodePoints one() {
    if (text_[at_] == '\\') return take("\\b") ? CodePoints{{8, 8}} : take("\\-") ? CodePoints{{'-', '-'}} : escape();
    uint32_t c = code_point();
    return {{c, c}};
  }

  std::string_view text_;
  Expr (*character_)(const CodePoints&);
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace

Expr regex(std::string_view pattern, Expr (*character)(const CodePoints&)) { return Reader(pattern, character).read(); }

}  // namespace fulgur
