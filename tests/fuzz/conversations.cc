// Inputs: JSON Lines of conversations to learn from.
#include "fulgur/train/conversations.h"

#include "fulgur/text/splitter.h"
#include "fulgur/text/train_bpe.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

namespace {

const Tokenizer& bytes_alone() {
  static const Tokenizer tokenizer = [] {
    BpeOptions options{.vocab_size = 277, .special_tokens = v32_special_tokens(), .added_tokens = v32_fixed_texts()};
    return Tokenizer(vocabulary_of(train_bpe({}, options), options, deepseek_patterns()));
  }();
  return tokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("messages.jsonl", fuzz::view(data, size));
  fuzz::accepts([&] {
    for (const auto& sample : read_conversations(path, bytes_alone(), 4096)) {
      fuzz::promise(sample.tokens.size() == sample.learned.size() && sample.tokens.size() <= 4096, "a flag for each token");
      fuzz::promise(sample.prompt > 0 && sample.prompt < int64_t(sample.tokens.size()), "an answer behind a prompt");
      bool any = false;
      for (size_t i = 0; i < sample.learned.size(); ++i)
        any |= sample.learned[i],
            fuzz::promise(!sample.learned[i] || int64_t(i) >= sample.prompt, "nothing of the prompt is learned");
      fuzz::promise(any, "each sample teaches something");
    }
  });
  return 0;
}
