#define PCRE2_CODE_UNIT_WIDTH 8
#include "fulgur/rl/rewards/regex_match.h"

#include <pcre2.h>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

constexpr uint32_t kOptions = PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_DOLLAR_ENDONLY | PCRE2_NEVER_BACKSLASH_C;
constexpr uint32_t kMostKib = 64 << 10;

std::string error_text(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<char*>(text);
}

}  // namespace

struct RegexMatch::Code {
  pcre2_code* code = nullptr;
  pcre2_match_context* limits = pcre2_match_context_create(nullptr);
  Code() {
    pcre2_set_match_limit(limits, kMostSteps);
    pcre2_set_heap_limit(limits, kMostKib);
  }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() {
    pcre2_code_free(code);
    pcre2_match_context_free(limits);
  }
};

RegexMatch::RegexMatch(const std::string& pattern) {
  auto made = std::make_shared<Code>();
  int error;
  PCRE2_SIZE offset;
  made->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), kOptions, &error, &offset, nullptr);
  if (!made->code)
    throw InputError(cat("[rewards] pattern ", pattern, ": expected a regular expression, got an error at byte ", offset, ": ",
                         error_text(error)));
  code_ = std::move(made);
}

Outcome RegexMatch::operator()(std::string_view answer) const {
  std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(pcre2_match_data_create(1, nullptr),
                                                                       pcre2_match_data_free);
  int found =
      pcre2_match(code_->code, reinterpret_cast<PCRE2_SPTR>(answer.data()), answer.size(), 0, 0, match.get(), code_->limits);
  if (found >= 0) return {1, "the pattern is found"};
  if (found == PCRE2_ERROR_NOMATCH) return {0, "the pattern is not found"};
  return invalid_outcome(cat("match limit: ", error_text(found)));
}

}  // namespace fulgur
