// Sparse attention for a dense model (as V3.2 came from V3.1, paper 2.1.1): indexers beside the attention there is, taught by it.
//   Dense warm-up, a layer at a time: while a sequence passes through the dense model, each layer's indexer takes a few steps
//   towards the head-summed attention of rows drawn from it. Layers' indexers know nothing of each other, so nothing is kept from
//   layer to layer: memory is that of a forward pass and of one indexer's moments, O(rows + tile) a key.
// A function of its inputs and the seed; the same bits on any number of threads.
#pragma once

#include <functional>

#include "fulgur/model/transformer.h"
#include "fulgur/train/batches.h"

namespace fulgur {

struct IndexerTeaching {
  int64_t context = 2048;  // tokens a sequence
  int64_t sequences = 60;
  int64_t passes = 5;  // steps of each layer's indexer a sequence,
  int64_t rows = 128;  // each on so many of its rows
  double lr = 3e-3;    // falls linearly to 0
  uint64_t seed = 1;
};

// The same model with indexers, by the keys index_* of `config`. Tied ones begin with the attention's own queries, of several
// heads their mean, all of one weight; own ones at random. Throws InputError where index_n_heads does not divide the heads.
Transformer with_indexers(Transformer dense, const ModelConfig& config, uint64_t seed);

// Means over a sequence's rows that have more than k keys and over layers: the share of the head-averaged attention on the chosen
// keys, by the indexer, by the best choice, and by the last k with 4 sinks.
struct AttentionKept {
  double indexer = 0, oracle = 0, window = 0;
};
AttentionKept attention_kept(const Transformer& model, const Batch& batch, int64_t k, int64_t rows, uint64_t seed);

// `told(sequences done, mean KL of the last)`; stops where it returns false.
void teach_indexers(Transformer& model, BatchSource& text, const IndexerTeaching& teaching,
                    const std::function<bool(int64_t done, double kl)>& told);

}  // namespace fulgur
