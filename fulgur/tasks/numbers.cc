#include "fulgur/tasks/numbers.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"

namespace fulgur {
namespace {

constexpr int64_t kLargestOperand = 999'999'999;

// The number at the beginning of `text`, which moves behind it.
std::optional<int64_t> take_number(std::string_view& text) {
  int64_t number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc()) return {};
  text.remove_prefix(size_t(end - text.data()));
  return number;
}

void skip_spaces(std::string_view& text) { text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size())); }

}  // namespace

int64_t Operation::value() const { return sign == '+' ? left + right : sign == '-' ? left - right : left * right; }

std::string Operation::text() const { return cat(left, " ", sign, " ", right); }

std::string Operation::key() const {
  return sign == '-' ? text() : Operation{std::min(left, right), sign, std::max(left, right)}.text();
}

Operation draw_operation(int64_t digits, RandomStream& random) {
  auto low = int64_t(std::pow(10, digits - 1));
  auto left = between(random, low, 10 * low - 1), right = between(random, low, 10 * low - 1);
  return {left, pick(kSigns, random), right};
}

std::optional<int64_t> whole_number(std::string_view text) {
  auto number = take_number(text);
  return text.empty() ? number : std::nullopt;
}

std::optional<Operation> operation_of(std::string_view text) {
  skip_spaces(text);
  auto left = take_number(text);
  skip_spaces(text);
  if (!left || text.empty() || kSigns.find(text[0]) == kSigns.npos) return {};
  char sign = text[0];
  text.remove_prefix(1);
  skip_spaces(text);
  auto right = take_number(text);
  skip_spaces(text);
  if (!right || !text.empty()) return {};
  if (std::min(*left, *right) < -kLargestOperand || std::max(*left, *right) > kLargestOperand) return {};
  return Operation{*left, sign, *right};
}

}  // namespace fulgur
