// Errors a user can cause: a bad file, flag, request or shape. One line says what was expected and what was found,
// a second one what to do. Our own mistakes are assertions, not exceptions.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace fulgur {

// what() is "[area] expected ..., got ...", with "\n  hint: ..." behind it when there is one. Exit code 1.
class InputError : public std::runtime_error {
 public:
  explicit InputError(const std::string& message, const std::string& hint = "")
      : std::runtime_error(hint.empty() ? message : message + "\n  hint: " + hint) {}
};

// A command line that cannot be understood. Exit code 2.
class UsageError : public InputError {
 public:
  using InputError::InputError;
};

// cat("expected ", 3, " rows") -> one string.
template <class... Parts>
std::string cat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace fulgur

// FULGUR_CHECK(rows == 3, "[linear] expected 3 rows, got ", rows): throws InputError; the text is built only on failure.
#define FULGUR_CHECK(condition, ...)                                          \
  do {                                                                        \
    if (!(condition)) throw ::fulgur::InputError(::fulgur::cat(__VA_ARGS__)); \
  } while (0)
