// Needles in a haystack: pass keys told somewhere in a long text, one of them asked for at its end. An answer is right where
// every token of the key is the most likely one, which is what greedy text would say.
#pragma once

#include <cstdint>
#include <functional>

#include "fulgur/eval/perplexity.h"
#include "fulgur/model/transformer.h"
#include "fulgur/text/tokenizer.h"

namespace fulgur {

struct NeedleTest {
  EvalForm form = EvalForm::sparse;
  int64_t context = 2048;  // tokens of a text at most, question and answer among them
  int64_t keys = 1;        // told in a text, of as many people, and each asked for; 16 at most
  int64_t samples = 200;   // questions
  uint64_t seed = 1;
};

struct NeedleCount {
  int64_t right = 0, asked = 0;
};

// The texts are the same for every form. The haystack before a text's first key is read once for all. `told(questions asked)`;
// stops where it returns false. Throws InputError where the context is too short.
NeedleCount count_needles(const Transformer& model, const Tokenizer& tokenizer, const NeedleTest& test,
                          const std::function<bool(int64_t asked)>& told);

}  // namespace fulgur
