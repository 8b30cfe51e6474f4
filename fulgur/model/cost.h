// What a token costs: floating-point operations, bytes of weights and cache, by form and position. No torch.
//   A multiply-add is 2 FLOP. Norms, softmax and rope are left out: under 1 % of a layer.      Spec A.7, C, D.7.
#pragma once

#include <cstdint>

#include "fulgur/base/json.h"
#include "fulgur/model/config.h"

namespace fulgur {

struct ParameterCount {
  int64_t total = 0;     // main model: embedding, layers with their indexers, head
  int64_t active = 0;    // of these, what one token uses (embedding and head included)
  int64_t indexers = 0;  // of the main layers
  int64_t mtp = 0;       // MTP layers with their own embedding and head, on top of total
};
ParameterCount count_parameters(const ModelConfig& config);

// dense: MHA over all keys.  dense_absorbed: MQA form over all keys.  sparse: MQA form over the indexer's top-k.
enum class Form { dense, dense_absorbed, sparse };

struct TokenCost {
  double flops = 0;                  // one forward pass of the main model, head included
  double attention_flops = 0;        // of these, scores and values (no projections)
  double indexer_flops = 0;          // of these, the indexer's scores and projections
  double weight_bytes = 0;           // weights a lone token reads
  double cache_bytes = 0;            // cache a token reads at this position
  double cache_bytes_per_token = 0;  // what one more token adds to the cache
};
// `position`: keys the token sees, itself included. `bytes`: of a stored value.
TokenCost token_cost(const ModelConfig& config, Form form, int64_t position, double bytes);

// Bytes of a weight; and in a layer of a key: its latents and rope, or its heads' keys and values, and its indexer key.
struct StoredBytes {
  double weight, key, index_key;
};
StoredBytes stored_bytes(const ModelConfig& config, Form form, double bytes);  // all values of one size

// Rows of one text in one step of inference, the first seeing `before` keys and itself. The head is for the last row alone;
// weights are read once, of the experts as many as so many rows are likely to choose; so are the keys.
struct StepCost {
  double flops = 0, bytes = 0;
  double core_flops = 0, core_bytes = 0;  // of these, attention's scores and values, and the indexer's scores
  double indexer_flops = 0;               // of core_flops, the indexer's
};
StepCost step_cost(const ModelConfig& config, Form form, int64_t before, int64_t rows, const StoredBytes& bytes);

// A training step's FLOP a token: forward and backward (twice the forward), MTP and the stage's indexer loss included.
//   warmup has no backward but the indexer's. `context`: mean over positions of one sequence.
enum class TrainForm { pretrain, warmup, sparse };  // as StageKind
double train_flops(const ModelConfig& config, TrainForm form, int64_t context);

Json cost_json(const ModelConfig& config);

}  // namespace fulgur
