// Inputs: JSON as Python reads it, and in it a list of messages.
#include "fulgur/base/python_json.h"
#include "fulgur/base/utf8.h"
#include "fulgur/text/v32_encode.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Json json;
  if (!fuzz::accepts([&] { json = parse_python_json(fuzz::view(data, size), "input"); })) return 0;
  auto printed = dump_python_json(json);
  fuzz::promise(dump_python_json(parse_python_json(printed, "printed")) == printed, "what is printed is read as it was");
  for (auto mode : {ThinkingMode::chat, ThinkingMode::thinking})
    for (auto retention : {Retention::paper, Retention::api})
      fuzz::accepts([&] {
        auto prompt = encode_v32(messages_of(json, "messages"), {mode, retention, true});
        fuzz::promise(invalid_utf8(prompt.text) == prompt.text.size(), "a prompt is UTF-8");
        size_t last = 0;
        for (auto span : prompt.plain) {
          fuzz::promise(last <= span.begin && span.begin < span.end && span.end <= prompt.text.size(), "spans lie in order");
          last = span.end + 1;
        }
      });
  return 0;
}
