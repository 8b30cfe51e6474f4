#define PCRE2_CODE_UNIT_WIDTH 8
#include "fulgur/text/splitter.h"

#include <pcre2.h>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

PCRE2_SPTR characters(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

// Where a match is told, and what the matcher works on. One a thread.
struct Workspace {
  pcre2_match_data* match = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 1 << 20, nullptr);
  Workspace() { pcre2_jit_stack_assign(context, nullptr, stack); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

}  // namespace

struct Splitter::Impl {
  Impl() = default;
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;
  ~Impl() {
    for (auto* code : codes) pcre2_code_free(code);
  }
  std::vector<pcre2_code*> codes;
  std::vector<bool> jit;
};

Splitter::Splitter(const std::vector<std::string>& patterns, const std::string& name)
    : impl_(std::make_unique<Impl>()),
      patterns_(patterns.size()) {
  for (const auto& pattern : patterns) {
    int error;
    PCRE2_SIZE offset;
    auto* code =
        pcre2_compile(characters(pattern), pattern.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_NO_UTF_CHECK, &error, &offset, nullptr);
    if (!code) {
      PCRE2_UCHAR text[256];
      pcre2_get_error_message(error, text, sizeof text);
      throw InputError(cat("[tokenizer] ", name, ": expected a regular expression, got an error at byte ", offset, ": ",
                           reinterpret_cast<char*>(text)));
    }
    impl_->codes.push_back(code);
    impl_->jit.push_back(pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0);
  }
}

Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

Splitter::Match Splitter::next(size_t pattern, std::string_view text, size_t from) const {
  static thread_local Workspace workspace;
  auto& [match, context, stack] = workspace;
  const auto* code = impl_->codes[pattern];
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match);
  while (from < text.size()) {
    int found = PCRE2_ERROR_JIT_STACKLIMIT;
    if (impl_->jit[pattern]) found = pcre2_jit_match(code, characters(text), text.size(), from, 0, match, context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT)
      found = pcre2_match(code, characters(text), text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match, context);
    if (found < 0) break;  // none, or a limit was reached: the rest stays whole
    if (range[1] > range[0]) return {range[0], range[1]};
    from = range[1] + 1;  // an empty match splits nothing
    while (from < text.size() && (text[from] & 0xc0) == 0x80) ++from;
  }
  return {text.size(), text.size()};
}

}  // namespace fulgur
