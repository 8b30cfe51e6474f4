#include "fulgur/ops/indexer/indexer.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fulgur/ops/indexer/kernels.h"
#include "fulgur/ops/indexer/select.h"
#include "fulgur/ops/op.h"
#include "fulgur/ops/paged.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops {
namespace {

using Scores = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&);
using Select = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, int64_t, const std::optional<Tensor>&);
using TopK = Tensor(const Tensor&, const Tensor&, int64_t);

// Groups of keys, which the shapes tell: k [S, G, D], or pages of keys of G D numbers, [pages, 64, G, D] key by key.
int64_t groups_of(const Tensor& q, const Tensor& k, bool paged) {
  if (!paged) return k.dim() == 3 ? k.size(1) : 1;
  if (k.dim() == 4) return k.size(2);
  int64_t size = k.dim() == 3 ? k.size(1) : k.size(1) / kPageKeys - 4;
  return q.size(2) > 0 && size % q.size(2) == 0 ? size / q.size(2) : 0;
}

// Checks all shapes; returns the keys of the call.
PagedKeys check(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& visible, const std::optional<Tensor>& pages) {
  bool quantised = k.scalar_type() == at::kByte || k.scalar_type() == at::kChar;
  bool key_by_key = pages && k.dim() == 4;
  bool fits = q.dim() == 3 && (k.dim() == 2 || k.dim() == 3 || key_by_key);
  if (key_by_key)
    fits = fits && k.size(1) == kPageKeys && k.size(3) == q.size(2) && k.stride(3) == 1 && k.stride(0) == kPageKeys * k.stride(1);
  else if (!pages) fits = fits && !quantised && q.size(2) == k.size(k.dim() - 1);
  else if (quantised) fits = fits && k.dim() == 2 && k.size(1) % kPageKeys == 0 && q.size(2) <= 128;
  else fits = fits && k.dim() == 3 && k.size(2) == kPageKeys;
  int64_t groups = fits ? groups_of(q, k, pages.has_value()) : 0;
  FULGUR_CHECK(groups > 0 && q.size(1) % groups == 0,
               "[indexer] expected q [N, J, D] and k [S, D] or [S, G, D] of groups that divide J, or in pages [pages, G D, 64], "
               "[pages, 64, G, D] or quantised [pages, 64 (G D + 4)], got ",
               q.sizes(), " and ", k.sizes());
  FULGUR_CHECK(quantised || q.scalar_type() == k.scalar_type(), "[indexer] expected q and k of one type, got ", q.scalar_type(),
               " and ", k.scalar_type());
  FULGUR_CHECK(w.dim() == 2 && w.size(0) == q.size(0) && w.size(1) == q.size(1) && w.scalar_type() == at::kFloat,
               "[indexer] expected float32 weights [", q.size(0), ", ", q.size(1), "], got ", w.sizes());
  PagedKeys keys(pages, k.size(0) * (pages ? kPageKeys : 1), "indexer");
  check_visible(visible, q.size(0), keys.count, "indexer");
  keys.check_ranges(visible, "indexer");
  return keys;
}

IndexerParams params_of(const Tensor& q, const Tensor& k, const Tensor& w, const int* visible, const PagedKeys& keys) {
  auto format = k.scalar_type() == at::kByte ? KeyFormat::fp8 : k.scalar_type() == at::kChar ? KeyFormat::int8 : KeyFormat::plain;
  return {q.const_data_ptr(),
          k.const_data_ptr(),
          w.const_data_ptr<float>(),
          visible,
          q.size(1),
          q.size(2),
          storage(q, "indexer"),
          keys.pages,
          format,
          groups_of(q, k, keys.pages != nullptr),
          k.dim() == 4 ? k.stride(1) : 0,
          k.dim() == 4 ? k.stride(2) : 0};
}

// Keys of a cache are not copied.
Tensor where_they_lie(const Tensor& k) { return k.dim() == 4 ? k : k.contiguous(); }

Tensor scores_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& w_in, const Tensor& visible_in,
                  const std::optional<Tensor>& pages) {
  auto q = q_in.contiguous(), k = where_they_lie(k_in), w = w_in.contiguous(), visible = visible_in.contiguous();
  auto paged = check(q, k, w, visible, pages);
  int64_t S = paged.count;
  auto out = at::empty({q.size(0), S}, w.options()).fill_(-INFINITY);
  const int* range = visible.const_data_ptr<int>();
  float* scores = out.mutable_data_ptr<float>();
  auto params = params_of(q, k, w, range, paged);
  auto kernel = FULGUR_CALL(indexer_score_block);
  parallel_for(q.size(0), [&](int64_t row) {
    int64_t begin = range[2 * row], count = range[2 * row + 1] - begin;
    if (count > 0) kernel(params, row, row + 1, begin, count, scores + row * S + begin, S);
  });
  return out;
}

Tensor scores_meta(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor&, const std::optional<Tensor>& pages) {
  return at::empty_symint({q.sym_size(0), pages ? pages->sym_size(0) * kPageKeys : k.sym_size(0)}, w.options());
}

// Few rows by many keys: stretches of keys are the tasks, and the rows' scores [rows, S] are held.
void select_few(const IndexerParams& p, const RowBlock& block, int64_t k, int* out) {
  constexpr int64_t kStretch = 8 * kIndexerTile;
  int64_t rows = block.last - block.first, begin = p.visible[2 * block.first], end = begin;
  for (int64_t row = block.first; row < block.last; ++row) end = std::max<int64_t>(end, p.visible[2 * row + 1]);
  int64_t S = end - begin;
  if (S <= k) {  // all are chosen, whatever they score
    for (int64_t row = block.first; row < block.last; ++row) {
      int* chosen = out + row * k;
      int64_t count = std::max<int64_t>(0, p.visible[2 * row + 1] - begin);
      for (int64_t i = 0; i < k; ++i) chosen[i] = i < count ? int(begin + i) : -1;
    }
    return;
  }
  std::vector<float> scores(rows * S);
  auto kernel = FULGUR_CALL(indexer_score_block);
  parallel_for((S + kStretch - 1) / kStretch, [&](int64_t i) {
    int64_t at = i * kStretch;
    kernel(p, block.first, block.last, begin + at, std::min(kStretch, S - at), scores.data() + at, S);
  });
  parallel_for(rows, [&](int64_t r) {
    int64_t row = block.first + r;
    select_top_k(scores.data() + r * S, p.visible[2 * row + 1] - begin, k, int32_t(begin), out + row * k);
  });
}

Tensor select_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& w_in, const Tensor& visible_in, int64_t k,
                  const std::optional<Tensor>& pages) {
  auto q = q_in.contiguous(), keys = where_they_lie(k_in), w = w_in.contiguous(), visible = visible_in.contiguous();
  auto paged = check(q, keys, w, visible, pages);
  FULGUR_CHECK(k > 0, "[indexer] expected a positive top-k, got ", k);
  auto selected = at::empty({q.size(0), k}, visible.options());
  const int* range = visible.const_data_ptr<int>();
  int* out = selected.mutable_data_ptr<int>();
  auto params = params_of(q, keys, w, range, paged);
  auto kernel = FULGUR_CALL(indexer_select_block);
  auto blocks = row_blocks(visible, kIndexerRows);
  if (int64_t(blocks.size()) < 2 * threads() && threads() > 1) {
    for (const auto& block : blocks) select_few(params, block, k, out);
  } else {
    parallel_for(int64_t(blocks.size()), [&](int64_t i) { kernel(params, blocks[i].first, blocks[i].last, k, out); });
  }
  return selected;
}

Tensor select_meta(const Tensor& q, const Tensor&, const Tensor&, const Tensor& visible, int64_t k,
                   const std::optional<Tensor>&) {
  return at::empty_symint({q.sym_size(0), k}, visible.options());
}

Tensor top_k_cpu(const Tensor& scores_in, const Tensor& lengths_in, int64_t k) {
  auto scores = scores_in.to(at::kFloat).contiguous(), lengths = lengths_in.to(at::kInt).contiguous();
  FULGUR_CHECK(scores.dim() == 2 && lengths.dim() == 1 && lengths.size(0) == scores.size(0) && k > 0,
               "[top_k] expected scores [N, S], lengths [N] and a positive k, got ", scores.sizes(), ", ", lengths.sizes(), ", ",
               k);
  int64_t S = scores.size(1);
  auto selected = at::empty({scores.size(0), k}, lengths.options());
  const int* length = lengths.const_data_ptr<int>();
  for (int64_t row = 0; row < scores.size(0); ++row)
    FULGUR_CHECK(length[row] >= 0 && length[row] <= S, "[top_k] expected lengths up to ", S, ", got ", length[row]);
  const float* from = scores.const_data_ptr<float>();
  int* out = selected.mutable_data_ptr<int>();
  parallel_for(scores.size(0), [&](int64_t row) { select_top_k(from + row * S, length[row], k, 0, out + row * k); });
  return selected;
}

Tensor top_k_meta(const Tensor& scores, const Tensor& lengths, int64_t k) {
  return at::empty_symint({scores.sym_size(0), k}, lengths.options().dtype(at::kInt));
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("indexer_scores(Tensor q, Tensor k, Tensor w, Tensor visible, Tensor? pages=None) -> Tensor");
  m.def("indexer_top_k(Tensor q, Tensor keys, Tensor w, Tensor visible, int k, Tensor? pages=None) -> Tensor");
  m.def("top_k(Tensor scores, Tensor lengths, int k) -> Tensor");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("indexer_scores", scores_cpu);
  m.impl("indexer_top_k", select_cpu);
  m.impl("top_k", top_k_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("indexer_scores", scores_meta);
  m.impl("indexer_top_k", select_meta);
  m.impl("top_k", top_k_meta);
}

}  // namespace

Tensor indexer_scores(const Tensor& q_NJD, const Tensor& k_SD, const Tensor& w_NJ, const Tensor& visible_N2,
                      const Tensor& pages) {
  static const auto op = typed<Scores>("indexer_scores");
  return op.call(q_NJD.detach(), k_SD.detach(), w_NJ.detach(), visible_N2, given(pages));
}

Tensor indexer_top_k(const Tensor& q_NJD, const Tensor& k_SD, const Tensor& w_NJ, const Tensor& visible_N2, int64_t k,
                     const Tensor& pages) {
  static const auto op = typed<Select>("indexer_top_k");
  return op.call(q_NJD.detach(), k_SD.detach(), w_NJ.detach(), visible_N2, k, given(pages));
}

Tensor top_k(const Tensor& scores_NS, const Tensor& lengths_N, int64_t k) {
  static const auto op = typed<TopK>("top_k");
  return op.call(scores_NS, lengths_N, k);
}

void select_top_k(const float* scores, int64_t count, int64_t k, int32_t offset, int32_t* out) {
  FULGUR_CALL(top_k_row)(scores, count, k, offset, out);
}

}  // namespace fulgur::ops
