// Text from a model, token by token through the cache: O(k) attention a token.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "fulgur/model/transformer.h"

namespace fulgur {

struct GenerateOptions {
  int64_t max_tokens = 200;
  double temperature = 0.8;  // 0: the most likely token
  double top_p = 0.95;
  uint64_t seed = 1;
  Attention attention = Attention::sparse;
  at::ScalarType type = at::kFloat;
  int32_t eos = 1;  // generation ends behind it
};

// Calls `token(id)` for each new token until it returns false, EOS or max_tokens. Returns the number of tokens.
int64_t generate(const Transformer& model, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                 const std::function<bool(int32_t)>& token);

}  // namespace fulgur
