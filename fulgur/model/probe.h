// How well an indexer finds the keys attention looks at, measured on whole documents run with dense attention.
#pragma once

#include <vector>

#include "fulgur/model/transformer.h"

namespace fulgur {

// Means over rows with more than index_topk keys; p is the head-averaged attention, ideal its own top-k.
struct IndexerQuality {
  double recall = 0, mass = 0;                // of the indexer's top-k; mass as a share of the ideal's
  double window_recall = 0, window_mass = 0;  // of the last k keys, 4 of them sinks at the start
  int64_t rows = 0;
};

// One entry a main layer. Holds [N, N] a layer: a few thousand rows at most. `keys`: how a cache would hold the indexer's.
std::vector<IndexerQuality> probe_indexer(const Transformer& model, const Batch& batch, const ForwardOptions& options,
                                          KeyFormat keys = KeyFormat::plain);

// The last k visible keys of each row, `sinks` of them the document's first: the baseline an indexer must beat.
at::Tensor window_selection(const Batch& batch, int64_t k, int64_t sinks);

}  // namespace fulgur
