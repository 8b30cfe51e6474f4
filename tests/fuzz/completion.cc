// Inputs: what a model wrote. The streaming parser ends where the strict one does, and alike wherever its input is cut.
#include "fulgur/text/v32_format.h"
#include "fulgur/text/v32_parse.h"
#include "tests/fuzz/fuzz.h"

namespace fulgur::fuzz {
namespace {

bool same(const Message& a, const Message& b) {
  return a.reasoning_content == b.reasoning_content && a.content == b.content && a.tool_calls == b.tool_calls;
}

Message streamed(std::string_view text, ThinkingMode mode, size_t part) {
  StreamParser parser(
      mode, [](const Delta& delta) { promise(invalid_utf8(delta.text) == delta.text.size(), "deltas are whole characters"); });
  for (; text.size() > part; text.remove_prefix(part)) parser.feed(text.substr(0, part));
  parser.feed(text);
  parser.finish();
  return parser.message();
}

}  // namespace
}  // namespace fulgur::fuzz

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto text = fuzz::view(data, size);
  for (auto mode : {ThinkingMode::chat, ThinkingMode::thinking}) {
    Message whole = fuzz::streamed(text, mode, size), strict;
    for (size_t part : {1, 3, 17}) fuzz::promise(fuzz::same(whole, fuzz::streamed(text, mode, part)), "cuts change nothing");
    for (const auto& said : {whole.reasoning_content, whole.content})
      fuzz::promise(said.find(v32::kMarker) == std::string::npos, "no marker is among the text");
    bool valid = invalid_utf8(text) == size;
    if (fuzz::accepts([&] { strict = parse_v32(text, mode); }) && valid)
      fuzz::promise(fuzz::same(whole, strict), "what is well formed is read strictly");
  }
  return 0;
}
