#define PCRE2_CODE_UNIT_WIDTH 8
#include "fulgur/rl/rewards/language.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

// Scripts of living languages; a letter of another is of kOther. The first three are named below.
constexpr const char* kScripts[] = {
    "Han",   "Hiragana", "Katakana", "Latin",   "Cyrillic", "Greek",    "Hangul",   "Arabic",    "Hebrew", "Devanagari",
    "Thai",  "Bengali",  "Tamil",    "Telugu",  "Kannada",  "Gujarati", "Gurmukhi", "Malayalam", "Oriya",  "Sinhala",
    "Khmer", "Lao",      "Myanmar",  "Tibetan", "Georgian", "Armenian", "Ethiopic", "Mongolian", "Thaana", "Cherokee"};
constexpr size_t kHan = 0, kHiragana = 1, kKatakana = 2, kHangul = 6, kOther = std::size(kScripts);
constexpr uint8_t kNoLetter = kOther + 1;
constexpr uint32_t kTableEnd = 0x40000;  // no letter lies behind plane 3

using Counts = std::array<int64_t, kOther + 1>;  // letters by script

// The text with every character that a class has not cut away. One of PCRE2's classes, such as \p{L}.
std::string only(const std::string& text, const std::string& character_class) {
  int error;
  PCRE2_SIZE offset, size = text.size() + 1;
  auto pattern = "[^" + character_class + "]+";
  std::unique_ptr<pcre2_code, void (*)(pcre2_code*)> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF, &error, &offset, nullptr),
      pcre2_code_free);
  std::string out(size, '\0');
  pcre2_substitute(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, PCRE2_SUBSTITUTE_GLOBAL, nullptr,
                   nullptr, reinterpret_cast<PCRE2_SPTR>(""), 0, reinterpret_cast<PCRE2_UCHAR*>(out.data()), &size);
  out.resize(size);
  return out;
}

// The script of each code point. Letters of all scripts and of none (mathematical ones) are no letters here.
std::vector<uint8_t> make_table() {
  std::vector<uint8_t> table(kTableEnd, kNoLetter);
  std::string all;
  for (uint32_t c = 0x41; c < kTableEnd; ++c)
    if (c < 0xd800 || c > 0xdfff) append_utf8(all, c);
  auto mark = [&](const std::string& letters, size_t script) {
    for (size_t at = 0; at < letters.size();) table[next_code_point(letters, at)] = uint8_t(script);
  };
  auto letters = only(only(all, "\\p{L}"), "\\P{Common}");
  mark(letters, kOther);
  for (size_t script = kOther; script-- > 0;) mark(only(letters, std::string("\\p{") + kScripts[script] + "}"), script);
  mark("\u30fc", kKatakana);  // the long vowel, which is of both kana
  return table;
}

// What is no prose: from an opening to its closing.
struct Span {
  std::string_view open, close;
  bool one_line;  // nothing is opened unless it closes in its line
  bool unclosed;  // reaches to the end where nothing closes it
};
constexpr Span kSpans[] = {
    {"```", "```", false, true}, {"~~~", "~~~", false, true},         {"``", "``", true, false},    {"`", "`", true, false},
    {"$$", "$$", false, false},  {"\\(", "\\)", false, false},        {"\\[", "\\]", false, false}, {"$", "$", true, false},
    {"<", ">", true, false},     {"\\begin{", "\\end{", false, false}};

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// Cuts a text into prose and what is none. Each closing is looked for once, so that many openings cost no more than one.
class ProseReader {
 public:
  explicit ProseReader(std::string_view text) : text_(text) {}

  std::string prose() {
    std::string out;
    for (size_t at = 0; at < text_.size();) {
      size_t end = std::max({behind_span(at), behind_url(at), behind_command(at)});
      if (end > at) out += ' ', at = end;
      else out += text_[at++];
    }
    return out;
  }

 private:
  static constexpr size_t kUnknown = -2;

  size_t next(size_t& known, std::string_view word, size_t from) const {
    if (known == kUnknown || known < from) known = text_.find(word, from);
    return known;
  }

  // Where the span ends that begins at `at`; 0 when none does.
  size_t behind_span(size_t at) {
    for (size_t i = 0; i < std::size(kSpans); ++i) {
      const auto& span = kSpans[i];
      if (!text_.substr(at).starts_with(span.open)) continue;
      size_t inside = at + span.open.size(), close = next(closing_[i], span.close, inside);
      if (close == text_.npos) {
        if (span.unclosed) return text_.size();
        continue;
      }
      if (span.one_line && next(line_end_, "\n", at) < close) continue;
      if (span.open == "$" && !is_maths(inside, close)) continue;
      if (span.open == "<" && !is_tag(inside)) continue;
      close += span.close.size();
      return span.open == "\\begin{" ? behind_name(close) : close;
    }
    return 0;
  }

  // As pandoc has it: no blank within the dollars, no digit behind them. "$5 and $6" are prices.
  bool is_maths(size_t inside, size_t close) const {
    bool digit_behind = close + 1 < text_.size() && text_[close + 1] >= '0' && text_[close + 1] <= '9';
    return close > inside && text_[inside] != ' ' && text_[close - 1] != ' ' && !digit_behind;
  }
  bool is_tag(size_t inside) const {
    if (text_[inside] == '/') ++inside;
    return inside < text_.size() && is_letter(text_[inside]);
  }

  // Behind \end{ stand a name and a bracket.
  size_t behind_name(size_t at) const {
    while (at < text_.size() && (is_letter(text_[at]) || text_[at] == '*')) ++at;
    return at + (at < text_.size() && text_[at] == '}');
  }

  size_t behind_url(size_t at) const {
    if (at > 0 && is_letter(text_[at - 1])) return 0;
    for (std::string_view begin : {"http://", "https://", "www."}) {
      if (!text_.substr(at).starts_with(begin)) continue;
      size_t end = at;
      while (end < text_.size() && text_[end] > ' ' && text_[end] < 0x7f) ++end;  // ASCII: in Chinese prose goes on behind it
      return end;
    }
    return 0;
  }

  // \alpha outside of maths
  size_t behind_command(size_t at) const {
    if (text_[at] != '\\') return 0;
    size_t end = at + 1;
    while (end < text_.size() && is_letter(text_[end])) ++end;
    return end > at + 1 ? end : 0;
  }

  std::string_view text_;
  std::array<size_t, std::size(kSpans)> closing_ = filled();
  size_t line_end_ = kUnknown;

  static std::array<size_t, std::size(kSpans)> filled() {
    std::array<size_t, std::size(kSpans)> out;
    out.fill(kUnknown);
    return out;
  }
};

Counts letters_of(std::string_view text) {
  static const auto table = make_table();
  Counts out{};
  auto prose = ProseReader(valid_utf8(text)).prose();
  for (size_t at = 0; at < prose.size();)
    if (uint32_t c = next_code_point(prose, at); c < kTableEnd && table[c] != kNoLetter) ++out[table[c]];
  return out;
}

Counts weighed(Counts letters) {
  letters[kHan] *= 3;
  for (size_t script : {kHiragana, kKatakana, kHangul}) letters[script] *= 2;
  return letters;
}

int64_t kana(const Counts& letters) { return letters[kHiragana] + letters[kKatakana]; }
bool is_japanese(const Counts& letters) { return kana(letters) > 0 && kana(letters) * 10 >= kana(letters) + letters[kHan]; }

}  // namespace

double language_consistency(std::string_view prompt, std::string_view answer) {
  constexpr int64_t kMostHanWithoutKana = 16;
  Counts asked = letters_of(prompt), got = letters_of(answer), weight = weighed(got);
  int64_t all = 0, kept = 0;
  for (int64_t letters : weight) all += letters;
  Counts by_script = weighed(asked);
  bool japanese = is_japanese(asked);
  if (japanese) by_script[kHan] += kana(by_script);
  size_t main_script = std::max_element(by_script.begin(), by_script.end()) - by_script.begin();
  if (all == 0 || by_script[main_script] == 0) return 1;
  kept = weight[main_script];
  if (main_script == kHan && japanese) kept += kana(weight);
  if (main_script == kHan && japanese && kana(got) == 0 && got[kHan] > kMostHanWithoutKana) kept = 0;
  return double(kept) / double(all);
}

}  // namespace fulgur
