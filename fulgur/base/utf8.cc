#include "fulgur/base/utf8.h"

#include <algorithm>

namespace fulgur {
namespace {

// The character, or the longest part of one, that begins at the front of `bytes`.
struct Character {
  size_t size;  // what its first byte announces; 0: no character begins so
  size_t good;  // bytes that fit
  bool whole() const { return size > 0 && good == size; }
};

Character first_character(std::string_view bytes) {
  uint8_t lead = uint8_t(bytes[0]);
  size_t size = lead < 0x80                   ? 1
                : lead >= 0xc2 && lead < 0xe0 ? 2
                : (lead & 0xf0) == 0xe0       ? 3
                : lead >= 0xf0 && lead < 0xf5 ? 4
                                              : 0;
  size_t good = size > 0 ? 1 : 0;
  for (; good > 0 && good < size && good < bytes.size(); ++good) {
    uint8_t low = 0x80, high = 0xbf, next = uint8_t(bytes[good]);
    if (good == 1) {  // overlong forms, surrogates, beyond U+10FFFF
      if (lead == 0xe0) low = 0xa0;
      if (lead == 0xed) high = 0x9f;
      if (lead == 0xf0) low = 0x90;
      if (lead == 0xf4) high = 0x8f;
    }
    if (next < low || next > high) break;
  }
  return {size, good};
}

}  // namespace

void append_utf8(std::string& out, uint32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += char(0xc0 | c >> 6), out += char(0x80 | (c & 63));
  } else if (c < 0x10000) {
    out += char(0xe0 | c >> 12), out += char(0x80 | (c >> 6 & 63)), out += char(0x80 | (c & 63));
  } else {
    out += char(0xf0 | c >> 18), out += char(0x80 | (c >> 12 & 63)), out += char(0x80 | (c >> 6 & 63));
    out += char(0x80 | (c & 63));
  }
}

uint32_t next_code_point(std::string_view text, size_t& at) {
  uint8_t lead = uint8_t(text[at++]);
  uint32_t c = lead < 0x80 ? lead : lead < 0xe0 ? lead & 31 : lead < 0xf0 ? lead & 15 : lead & 7;
  for (; at < text.size() && (text[at] & 0xc0) == 0x80; ++at) c = c << 6 | (text[at] & 63);
  return c;
}

size_t invalid_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    auto c = first_character(text.substr(at));
    if (!c.whole()) return at;
    at += c.size;
  }
  return at;
}

std::string valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  for (size_t i = 0; i < bytes.size();) {
    auto c = first_character(bytes.substr(i));
    if (c.whole()) out.append(bytes.substr(i, c.size));
    else out += "\xef\xbf\xbd";
    i += std::max<size_t>(c.good, 1);
  }
  return out;
}

std::string Utf8Stream::feed(std::string_view bytes) {
  begun_ += bytes;
  size_t end = begun_.size();
  for (size_t back = 1; back <= std::min<size_t>(3, begun_.size()); ++back) {
    auto last = std::string_view(begun_).substr(begun_.size() - back);
    if ((last[0] & 0xc0) == 0x80) continue;
    auto c = first_character(last);
    if (c.size > 0 && c.good == back && c.good < c.size) end -= back;
    break;
  }
  std::string out = valid_utf8(std::string_view(begun_).substr(0, end));
  begun_.erase(0, end);
  return out;
}

std::string Utf8Stream::finish() {
  std::string out = valid_utf8(begun_);
  begun_.clear();
  return out;
}

}  // namespace fulgur
