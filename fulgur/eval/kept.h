// What sparse attention keeps of a dense model: attention and perplexity on whole held-out documents, by number of keys.
#pragma once

#include <string>
#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/model/transformer.h"
#include "fulgur/train/data/shards.h"

namespace fulgur {

struct HeldOut {
  std::string kind;
  Batch batch;        // one document from its start,
  at::Tensor next_N;  // and what follows each token, int32
};

// The first `tokens` of documents that have so many, `count` at most, in the order of the shards.
std::vector<HeldOut> held_out_documents(const TokenShards& shards, const std::string& kind, int64_t tokens, int64_t count);

// taught: the indexer's choice. best: the keys of most attention averaged over heads. window: the last k, 4 of them sinks.
enum class KeptForm { dense, taught, best, window };

// Mean nats a token.
double document_nll(const Transformer& model, const HeldOut& document, KeptForm form, int64_t k);

// Of the k keys that the indexer chooses, measured in one dense pass: the attention on them, and the dense model's nats a token.
struct Attended {
  double mass = 0, nll = 0;
};
Attended measure_attention(const Transformer& model, const HeldOut& document, int64_t k);

// {"kind", "tokens", "dense": nats a token, "keys": [{"k", "mass": {"fresh", "taught", "best", "window"}, "nll": {"taught",
// "best", "window"}}]}. Mass: the share of the head-averaged dense attention on the chosen keys, a mean over layers and over 64
// rows drawn from those with more than k keys. `fresh` has the same weights with indexers as they were before they were taught.
// Without `baselines` there is no perplexity of best and window, which take as long as all the rest.
Json measure_kept(const Transformer& taught, const Transformer& fresh, const HeldOut& document, const std::vector<int64_t>& keys,
                  bool baselines);

}  // namespace fulgur
