// What a model is worth on held-out text, as records: bits per byte by form and context, indexer quality, and what a
// token costs at a position, measured.
#pragma once

#include <filesystem>
#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/eval/perplexity.h"

namespace fulgur {

// One object a form and context: {"form", "context", "tokens", "nll", "bits_per_byte", "tokens_per_second", "by_position":
// [{"first", "last", "tokens", "bits_per_byte"}]}.
Json evaluate_perplexity(const Transformer& model, const std::filesystem::path& data, const std::vector<EvalForm>& forms,
                         const std::vector<int64_t>& contexts, int64_t tokens, at::ScalarType type, CacheFormat cache = {});

// Means over `sequences` validation sequences: {"recall", "mass", "window_recall", "window_mass"}, each an array, one a layer.
Json evaluate_indexer(const Transformer& model, const std::filesystem::path& data, int64_t context, int64_t sequences,
                      KeyFormat keys = KeyFormat::plain);

// Seconds of one new token behind `context` others, by form: [{"form", "context", "seconds"}].
Json measure_cost(const Transformer& model, const std::vector<int64_t>& contexts);

// Which keys each layer's indexer selects in one validation sequence, and the attention it stands in for, averaged into
// `cells` x `cells` squares: [{"selected": [[...]], "attention": [[...]]}], one a layer.
Json selection_maps(const Transformer& model, const std::filesystem::path& data, int64_t context, int64_t cells);

}  // namespace fulgur
