#include "fulgur/rl/rewards/reward.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_word(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  size_t first = text.find_first_not_of(kSpace);
  if (first == text.npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) + 1 - first);
}

size_t skip_digits(std::string_view text, size_t at) {
  while (at < text.size() && is_digit(text[at])) ++at;
  return at;
}

// The end of 1,234,567 that begins at `at`; of plain digits where commas do not part groups of three.
size_t skip_whole(std::string_view text, size_t at) {
  size_t end = skip_digits(text, at);
  if (end - at > 3) return end;
  while (end < text.size() && text[end] == ',' && skip_digits(text, end + 1) == end + 4) end += 4;
  return end;
}

// A number without a sign, as it is written.
struct Written {
  size_t end;
  std::optional<double> value;  // none: too large for a double
};
std::optional<Written> read_unsigned(std::string_view text, size_t at) {
  size_t whole = skip_whole(text, at), end = whole;
  if (end + 1 < text.size() && text[end] == '.' && is_digit(text[end + 1])) end = skip_digits(text, end + 1);
  if (end == at) return std::nullopt;
  if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    size_t sign = end + 1 < text.size() && (text[end + 1] == '-' || text[end + 1] == '+');
    size_t exponent = skip_digits(text, end + 1 + sign);
    if (exponent > end + 1 + sign) end = exponent;
  }
  std::string plain(text.substr(at, end - at));
  std::erase(plain, ',');
  double value;
  bool fits = std::from_chars(plain.data(), plain.data() + plain.size(), value).ec == std::errc();
  return Written{end, fits ? std::optional(value) : std::nullopt};
}

// What a sign takes: "-", "+" or U+2212; 0 where there is none.
size_t sign_size(std::string_view text, size_t at) {
  if (text.substr(at).starts_with("\u2212")) return 3;
  return at < text.size() && (text[at] == '-' || text[at] == '+');
}

// a/b, and nothing that goes on with another slash, as dates do.
std::optional<Written> read_quotient(std::string_view text, size_t at) {
  auto above = read_unsigned(text, at);
  if (!above || above->end >= text.size() || text[above->end] != '/') return above;
  auto below = read_unsigned(text, above->end + 1);
  if (!below || (below->end < text.size() && text[below->end] == '/')) return above;
  if (!above->value || !below->value || *below->value == 0) return Written{below->end, std::nullopt};
  return Written{below->end, *above->value / *below->value};
}

// \frac{a}{b}, also \dfrac and \tfrac.
std::optional<Written> read_latex_fraction(std::string_view text, size_t at) {
  for (std::string_view name : {"\\frac{", "\\dfrac{", "\\tfrac{"}) {
    if (!text.substr(at).starts_with(name)) continue;
    size_t from = at + name.size(), sign = sign_size(text, from);
    auto above = read_unsigned(text, from + sign);
    if (!above || !text.substr(above->end).starts_with("}{")) return std::nullopt;
    auto below = read_unsigned(text, above->end + 2);
    if (!below || below->end >= text.size() || text[below->end] != '}') return std::nullopt;
    if (!above->value || !below->value || *below->value == 0) return Written{below->end + 1, std::nullopt};
    double value = *above->value / *below->value;
    return Written{below->end + 1, sign > 0 && text[from] != '+' ? -value : value};
  }
  return std::nullopt;
}

// Of the last \boxed{...} that is closed, what is inside.
std::string_view boxed_part(std::string_view text) {
  constexpr std::string_view kBoxed = "\\boxed{";
  size_t at = text.rfind(kBoxed);
  if (at == text.npos) return text;
  int depth = 1;
  for (size_t i = at + kBoxed.size(); i < text.size(); ++i) {
    depth += text[i] == '{' ? 1 : text[i] == '}' ? -1 : 0;
    if (depth == 0) return text.substr(at + kBoxed.size(), i - at - kBoxed.size());
  }
  return text;
}

// The value a pointer leads to, or null.
const Json* at_pointer(const Json& state, const std::string& pointer) {
  try {
    Json::json_pointer parsed(pointer);
    return state.contains(parsed) ? &state.at(parsed) : nullptr;
  } catch (const Json::exception&) {
    throw InputError(cat("[rewards] state check: expected a JSON pointer such as /orders/0/status, got ", pointer));
  }
}

}  // namespace

Outcome invalid_outcome(std::string why, Json detail) { return {std::nullopt, std::move(why), std::move(detail)}; }

void OutcomeTally::add(const Outcome& outcome) {
  if (outcome.score) ++valid;
  else ++invalid[outcome.why.substr(0, outcome.why.find(':'))];
}

int64_t OutcomeTally::invalid_count() const {
  int64_t out = 0;
  for (const auto& [kind, count] : invalid) out += count;
  return out;
}

std::string OutcomeTally::line() const {
  std::string kinds;
  for (const auto& [kind, count] : invalid) kinds += cat(kinds.empty() ? " (" : ", ", kind, " ", count);
  return cat(valid, " valid, ", invalid_count(), " invalid", kinds, kinds.empty() ? "" : ")");
}

Outcome exact_match(std::string_view answer, std::string_view expected) {
  if (trimmed(answer) == trimmed(expected)) return {1, "equal"};
  return {0, "differs from what was expected"};
}

std::optional<double> last_number(std::string_view answer) {
  auto text = boxed_part(answer);
  std::optional<double> last;
  for (size_t at = 0; at < text.size();) {
    char before = at > 0 ? text[at - 1] : ' ';
    bool behind_value = is_word(before) || before == ')' || before == ']' || before == '}';
    size_t sign = behind_value ? 0 : sign_size(text, at);
    bool starts = !is_word(before) && !(before == '.' && sign == 0 && text[at] == '.');
    std::optional<Written> read;
    if (sign > 0 || starts) {
      read = read_latex_fraction(text, at + sign);
      if (!read) read = before == '/' ? read_unsigned(text, at + sign) : read_quotient(text, at + sign);
    }
    if (!read) {
      ++at;
      continue;
    }
    last = read->value;
    if (last && sign > 0 && text[at] != '+') last = -*last;
    at = read->end;
  }
  return last;
}

Outcome numeric_match(std::string_view answer, double expected, double tolerance) {
  FULGUR_CHECK(std::isfinite(expected), "[rewards] numeric match: expected a finite number to compare with, got ", expected);
  FULGUR_CHECK(tolerance >= 0 && std::isfinite(tolerance), "[rewards] numeric match: expected a tolerance from 0, got ",
               tolerance);
  auto number = last_number(answer);
  if (!number) return {0, "no number in the answer"};
  bool near = std::fabs(*number - expected) <= tolerance * std::max(1.0, std::fabs(expected));
  return {near ? 1 : 0, cat("read ", *number, ", expected ", expected)};
}

bool same_json(const Json& a, const Json& b) {
  if (a.is_object() && b.is_object()) {
    if (a.size() != b.size()) return false;
    for (const auto& [key, value] : a.items()) {
      auto other = b.find(key);
      if (other == b.end() || !same_json(value, *other)) return false;
    }
    return true;
  }
  if (a.is_array() && b.is_array()) return std::equal(a.begin(), a.end(), b.begin(), b.end(), same_json);
  return a == b;
}

Outcome state_match(const Json& state, const std::vector<StateCheck>& checks) {
  Json failed = Json::array();
  for (const auto& check : checks) {
    const Json* found = at_pointer(state, check.pointer);
    bool holds = check.expected ? found && same_json(*found, *check.expected) : !found;
    if (!holds) failed.push_back(check.pointer);
  }
  std::string why = cat(checks.size() - failed.size(), " of ", checks.size(), " checks hold");
  return {failed.empty() ? 1 : 0, std::move(why), {{"failed", failed}, {"checks", checks.size()}}};
}

double linear_length_penalty(int64_t length, int64_t budget, double slope) {
  FULGUR_CHECK(length >= 0 && budget >= 0, "[rewards] length penalty: expected a length and a budget from 0, got ", length,
               " and ", budget);
  FULGUR_CHECK(slope >= 0 && std::isfinite(slope), "[rewards] length penalty: expected a slope from 0, got ", slope);
  return length > budget ? -slope * double(length - budget) : 0;
}

std::vector<std::optional<double>> relative_length_rewards(const std::vector<int64_t>& lengths,
                                                           const std::vector<std::optional<double>>& scores, double right_from) {
  FULGUR_CHECK(lengths.size() == scores.size(), "[rewards] length reward: expected a length for each of ", scores.size(),
               " scores, got ", lengths.size());
  int64_t shortest = INT64_MAX, longest = 0;
  for (size_t i = 0; i < lengths.size(); ++i) {
    FULGUR_CHECK(lengths[i] >= 0, "[rewards] length reward: expected lengths from 0, got ", lengths[i]);
    if (scores[i]) shortest = std::min(shortest, lengths[i]), longest = std::max(longest, lengths[i]);
  }
  std::vector<std::optional<double>> out(lengths.size());
  for (size_t i = 0; i < lengths.size(); ++i) {
    if (!scores[i]) continue;
    double lambda = longest > shortest ? 0.5 - double(lengths[i] - shortest) / double(longest - shortest) : 0;
    out[i] = *scores[i] >= right_from ? lambda : std::min(0.0, lambda);
  }
  return out;
}

}  // namespace fulgur
