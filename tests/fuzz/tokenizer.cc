// Inputs: tokenizer.json. One that loads gives every text back, whatever its pattern and merges are.
#include "fulgur/text/tokenizer.h"

#include <algorithm>

#include "fulgur/text/bytes.h"
#include "tests/fuzz/fuzz.h"

namespace fulgur::fuzz {
namespace {

// Words, digits, white space, scripts, joined emoji, texts of added tokens, and bytes that are no UTF-8.
constexpr std::string_view kText =
    "Fulgur can't, won't: 1234567 3.14\r\n\n  \t x = {\"a\": [1, 2]};   aa ab abab \u4e2d\u6587\u304b\u306a "
    "\ud55c\uad6d\uc5b4 \u00e9 e\u0301 \U0001f642\U0001f469\u200d\U0001f467 <think><|end|>\xff\xc3(\xe2\x82 end  ";

// The same file with the byte tokens it lacks: without them a reader stops at once, and few mutations have all of them.
std::string with_byte_tokens(std::string_view bytes) {
  Json json = parse_or_discard(bytes);
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) return "";
  Json& vocab = json["model"]["vocab"];
  if (!vocab.is_object()) return "";
  for (int b = 0; b < 256; ++b)
    if (!vocab.contains(byte_characters()[b])) vocab[byte_characters()[b]] = 1000 + b;
  return json.dump();
}

void check(const std::filesystem::path& file) {
  auto vocabulary = read_tokenizer_json(file);
  bool whole =
      std::none_of(vocabulary.byte_ids.begin(), vocabulary.byte_ids.end(), [](int32_t id) { return id < 0; }) && !vocabulary.nfc;
  Tokenizer tokenizer(std::move(vocabulary));
  auto valid = valid_utf8(kText);
  for (bool special : {false, true})
    promise(!whole || tokenizer.decode(tokenizer.encode(kText, special)) == valid, "decode gives back what encode was given");
  std::string joined;
  for (const auto& piece : tokenizer.split(kText)) joined += piece;
  promise(joined == valid, "the pieces are the text");
  for (int32_t id : {-1, tokenizer.vocab_size()})
    promise(!accepts([&] { tokenizer.decode({id}); }), "decode refuses ids outside the vocabulary");
}

}  // namespace
}  // namespace fulgur::fuzz

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto bytes = fuzz::view(data, size);
  for (const auto& file : {std::string(bytes), fuzz::with_byte_tokens(bytes)})
    if (!file.empty()) fuzz::accepts([&] { fuzz::check(fuzz::put("tokenizer.json", file)); });
  return 0;
}
