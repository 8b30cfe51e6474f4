// The byte-level alphabet of GPT-2 style tokenizers: every byte has a printable character, in UTF-8.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "fulgur/base/utf8.h"

namespace fulgur {

// Printable Latin-1 bytes stand for themselves; the other 68 take U+0100 and on, in order.
inline const std::array<std::string, 256>& byte_characters() {
  static const auto table = [] {
    std::array<std::string, 256> out;
    uint32_t next = 256;
    for (uint32_t b = 0; b < 256; ++b) {
      bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      append_utf8(out[b], printable ? b : next++);
    }
    return out;
  }();
  return table;
}

// The bytes a token's characters stand for; `known` is false when a character is outside the alphabet.
inline std::string token_bytes(std::string_view token, bool& known) {
  static const auto table = [] {
    std::unordered_map<std::string, char> out;
    for (int b = 0; b < 256; ++b) out[byte_characters()[b]] = char(b);
    return out;
  }();
  std::string out;
  known = true;
  for (size_t i = 0; i < token.size();) {
    size_t size = 1;
    while (i + size < token.size() && (token[i + size] & 0xc0) == 0x80) ++size;
    auto found = table.find(std::string(token.substr(i, size)));
    if (found == table.end()) known = false;
    else out += found->second;
    i += size;
  }
  return out;
}

}  // namespace fulgur
