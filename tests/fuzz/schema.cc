// Inputs: a JSON Schema, whose bytes also draw a text of its grammar; and a regular expression.
#include "fulgur/text/schema.h"

#include "fulgur/base/python_json.h"
#include "fulgur/text/bytes.h"
#include "fulgur/text/constraint.h"
#include "tests/fuzz/fuzz.h"

namespace fulgur::fuzz {
namespace {

// A token for every byte, and some of several.
std::shared_ptr<const TokenTree> tokens() {
  static const auto made = [] {
    std::vector<std::string> texts;
    for (const auto& character : byte_characters()) texts.push_back(character);
    for (auto text : {"{\"", "\":", "\",", "[]", "{}", "true", "null", "12", "abc", "\xc3\x83\xc2\xa9"}) texts.push_back(text);
    Vocabulary vocabulary = gguf_vocabulary(texts, std::vector<int32_t>(texts.size(), 1), {}, "gpt-2", "tokens");
    return std::make_shared<const TokenTree>(Tokenizer(std::move(vocabulary)));
  }();
  return made;
}

void follow(Grammar grammar, std::string_view choices) {
  if (grammar.states.size() > 3000) return;
  Constraint constraint(std::move(grammar), tokens());
  int32_t state = constraint.start();
  for (char choice : choices.substr(0, 16)) {
    auto mask = constraint.mask(state);
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < int32_t(tokens()->texts.size()); ++id) {
      bool fits = (*mask)[id / 64] >> id % 64 & 1;
      promise(fits == (constraint.advance(state, id) >= 0), "a mask is the tokens that fit");
      if (fits) ids.push_back(id);
    }
    promise(!ids.empty() || constraint.may_end(state), "there is always a way on");
    if (ids.empty()) return;
    state = constraint.advance(state, ids[uint8_t(choice) % ids.size()]);
  }
}

}  // namespace
}  // namespace fulgur::fuzz

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto text = fuzz::view(data, size);
  fuzz::accepts([&] { fuzz::follow(schema_grammar(parse_python_json(text, "schema")), text); });
  fuzz::accepts([&] { fuzz::follow(regex_grammar(text), text); });
  return 0;
}
