#define PCRE2_CODE_UNIT_WIDTH 8
#include "fulgur/text/splitter.h"

#include <pcre2.h>

#include "fulgur/base/error.h"

namespace fulgur {

struct Splitter::Impl {
  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    for (auto* code : codes) pcre2_code_free(code);
  }
  std::vector<pcre2_code*> codes;
};

Splitter::Splitter(const std::vector<std::string>& patterns, const std::string& name) : impl_(std::make_unique<Impl>()) {
  for (const auto& pattern : patterns) {
    int error;
    PCRE2_SIZE offset;
    auto* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                               PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr);
    if (!code) {
      PCRE2_UCHAR text[256];
      pcre2_get_error_message(error, text, sizeof text);
      throw InputError(cat("[tokenizer] ", name, ": expected a regular expression, got an error at byte ", offset, ": ",
                           reinterpret_cast<char*>(text)));
    }
    pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
    impl_->codes.push_back(code);
  }
}

Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

std::vector<std::string_view> Splitter::split(std::string_view text) const {
  std::vector<std::string_view> pieces, next;
  if (!text.empty()) pieces.push_back(text);
  for (auto* code : impl_->codes) {
    auto* match = pcre2_match_data_create_from_pattern(code, nullptr);
    next.clear();
    for (auto piece : pieces) {
      size_t done = 0, at = 0;
      while (at < piece.size()) {
        int count =
            pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(piece.data()), piece.size(), at, PCRE2_NO_UTF_CHECK, match, nullptr);
        if (count < 0) break;  // no further match (or a limit reached): the rest stays whole
        PCRE2_SIZE* range = pcre2_get_ovector_pointer(match);
        if (range[1] == range[0]) {  // an empty match splits nothing
          at = range[1] + 1;
          while (at < piece.size() && (piece[at] & 0xc0) == 0x80) ++at;
          continue;
        }
        if (range[0] > done) next.push_back(piece.substr(done, range[0] - done));
        next.push_back(piece.substr(range[0], range[1] - range[0]));
        done = at = range[1];
      }
      if (done < piece.size()) next.push_back(piece.substr(done));
    }
    pcre2_match_data_free(match);
    pieces.swap(next);
  }
  return pieces;
}

}  // namespace fulgur
