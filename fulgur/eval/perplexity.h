// Bits per byte of held-out text, by form of attention and context length.
#pragma once

#include <string>
#include <vector>

#include "fulgur/model/transformer.h"
#include "fulgur/train/data/shards.h"

namespace fulgur {

// dense: all keys. sparse: the indexer's top-k. window: the last k keys, 4 of them sinks at the start.
enum class EvalForm { dense, sparse, window };
const char* form_name(EvalForm form);

// What tokens at positions [first, last) of their document cost.
struct PositionLoss {
  int64_t first = 0, last = 0, tokens = 0;
  double bits_per_byte = 0;
};

struct Perplexity {
  EvalForm form = EvalForm::dense;
  int64_t context = 0;
  int64_t tokens = 0;  // predicted
  double nll = 0;      // nats a token
  double bits_per_byte = 0;
  double tokens_per_second = 0;
  std::vector<PositionLoss> by_position;  // 0-127, 128-255, 256-511, ... up to the context
};

// Reads up to `tokens` of the shards in sequences of `context`, the same ones for every form; through a cache where its format is
// not plain (sparse and window).
Perplexity perplexity(const Transformer& model, const TokenShards& shards, const Tokenizer& tokenizer, EvalForm form,
                      int64_t context, int64_t tokens, at::ScalarType type, CacheFormat cache = {});

}  // namespace fulgur
