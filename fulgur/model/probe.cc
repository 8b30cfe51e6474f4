#include "fulgur/model/probe.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer/select.h"

namespace fulgur {
namespace {

struct Found {
  double recall, mass;  // mass: sum of p over the keys
};

Found compare(const float* p, const std::vector<int32_t>& ideal, const std::vector<int32_t>& chosen) {
  std::vector<int32_t> both;
  std::set_intersection(ideal.begin(), ideal.end(), chosen.begin(), chosen.end(), std::back_inserter(both));
  double mass = 0;
  for (int32_t key : chosen) mass += p[key];
  return {double(both.size()) / double(ideal.size()), mass};
}

// The scores of keys in pages of that format, a document after another, [N, N].
at::Tensor scores_of_stored(const LayerTrace& layer, const at::Tensor& visible_N2, KeyFormat format) {
  int64_t N = visible_N2.size(0);
  auto scores_NS = at::full({N, N}, -INFINITY);
  const int* range = visible_N2.const_data_ptr<int>();
  for (int64_t begin = 0, end; begin < N; begin = end) {
    for (end = begin + 1; end < N && range[2 * end] == begin;) ++end;
    int64_t count = end - begin, pages = pages_for(count);
    auto of = [&](const at::Tensor& rows) { return rows.narrow(0, begin, count); };
    auto keys = ops::empty_index_keys(pages, layer.index_k_ND.size(1), format, layer.index_k_ND.scalar_type());
    ops::store_index_keys(keys, at::arange(count, at::kLong), of(layer.index_k_ND));
    auto scores = ops::indexer_scores(of(layer.index_q_NJD), keys, of(layer.index_w_NJ), of(visible_N2) - begin,
                                      at::arange(pages, at::kInt));
    of(scores_NS).narrow(1, begin, count).copy_(scores.narrow(1, 0, count));
  }
  return scores_NS;
}

}  // namespace

at::Tensor window_selection(const Batch& batch, int64_t k, int64_t sinks) {
  int64_t N = batch.visible_N2.size(0);
  auto selected = at::empty({N, k}, batch.visible_N2.options());
  const int* range = batch.visible_N2.const_data_ptr<int>();
  int* out = selected.mutable_data_ptr<int>();
  for (int64_t row = 0; row < N; ++row, out += k) {
    int64_t begin = range[2 * row], end = range[2 * row + 1], first = std::min(sinks, k);
    bool all = end - begin <= k;
    int64_t count = all ? end - begin : k;
    for (int64_t i = 0; i < count; ++i) out[i] = int(all || i < first ? begin + i : end - k + i);
    std::fill(out + count, out + k, -1);
  }
  return selected;
}

std::vector<IndexerQuality> probe_indexer(const Transformer& model, const Batch& batch, const ForwardOptions& given,
                                          KeyFormat keys) {
  c10::AutoGradMode no_grad(false);
  Trace trace;
  ForwardOptions options = given;
  options.attention = Attention::dense;
  options.trace = &trace;
  options.trace_scores = true;
  model.forward(batch, options);
  int64_t N = batch.visible_N2.size(0), k = model.config().index_topk;
  const int* range = batch.visible_N2.const_data_ptr<int>();
  auto window = window_selection(batch, k, 4);
  std::vector<IndexerQuality> out;
  for (const auto& layer : trace) {
    IndexerQuality q;
    auto scores_NS = keys == KeyFormat::plain ? layer.indexer_scores_NS : scores_of_stored(layer, batch.visible_N2, keys);
    for (int64_t row = 0; row < N; ++row) {
      int64_t begin = range[2 * row], count = range[2 * row + 1] - begin;
      if (count <= k) continue;
      const float* p = layer.attention_NS.const_data_ptr<float>() + row * N;
      std::vector<int32_t> ideal(k), chosen(k);
      ops::select_top_k(p + begin, count, k, int32_t(begin), ideal.data());
      ops::select_top_k(scores_NS.const_data_ptr<float>() + row * N + begin, count, k, int32_t(begin), chosen.data());
      const int* last = window.const_data_ptr<int>() + row * k;
      double best = compare(p, ideal, ideal).mass;
      Found indexer = compare(p, ideal, chosen), recent = compare(p, ideal, std::vector<int32_t>(last, last + k));
      q.recall += indexer.recall, q.mass += indexer.mass / best;
      q.window_recall += recent.recall, q.window_mass += recent.mass / best;
      ++q.rows;
    }
    double share = 1 / double(std::max<int64_t>(1, q.rows));
    q.recall *= share, q.mass *= share, q.window_recall *= share, q.window_mass *= share;
    out.push_back(q);
  }
  return out;
}

}  // namespace fulgur
