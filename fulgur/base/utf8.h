// UTF-8: whole, cut anywhere, or broken.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fulgur {

// Appends the character of a code point.
void append_utf8(std::string& out, uint32_t c);

// The code point at `at` of valid UTF-8, which moves behind it.
uint32_t next_code_point(std::string_view text, size_t& at);

// Where the first invalid part begins, text.size() where there is none. A character cut by the end is invalid.
size_t invalid_utf8(std::string_view text);

// U+FFFD for each maximal invalid part, as the Unicode standard recommends and Python's errors="replace" does.
std::string valid_utf8(std::string_view bytes);

// Bytes as they come, cut anywhere, into whole characters. What is invalid becomes U+FFFD, as in valid_utf8 of all bytes
// together.
class Utf8Stream {
 public:
  // The characters that are whole by now.
  std::string feed(std::string_view bytes);
  // The end: a character that was begun becomes U+FFFD.
  std::string finish();

 private:
  std::string begun_;
};

}  // namespace fulgur
