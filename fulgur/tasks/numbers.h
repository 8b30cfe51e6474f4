// Whole numbers and the three operations on them that give whole numbers: + - *.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "fulgur/base/random.h"

namespace fulgur {

inline constexpr std::string_view kSigns = "+-*";

struct Operation {
  int64_t left = 0;
  char sign = '+';
  int64_t right = 0;

  int64_t value() const;
  std::string text() const;  // "12 + 34"
  // The same for both orders of the operands where the order does not matter, so that no split learns another's answers.
  std::string key() const;
};

// Operands of so many digits.
Operation draw_operation(int64_t digits, RandomStream& random);

// "-12", without anything around it.
std::optional<int64_t> whole_number(std::string_view text);
// "12*34", white space between its parts or not. Operands beyond nine digits are none, so value() cannot overflow.
std::optional<Operation> operation_of(std::string_view text);

}  // namespace fulgur
