#include "fulgur/ops/indexer/kernels.h"

#include "fulgur/ops/indexer/dots.h"
#include "fulgur/ops/indexer/top_k.h"

namespace fulgur::FULGUR_ISA {
namespace {

// Memory that will be read next, asked for in even parts while there is work to do.
struct Ahead {
  const char *at = nullptr, *end = nullptr;
  int64_t step = 0;
  void fetch() {
    for (const char* stop = at + step < end ? at + step : end; at < stop; at += 64) __builtin_prefetch(at, 0, 2);
  }
};

// One row's scores with the packed keys of a tile.
void score_row(const IndexerParams& p, const float* q, const float* w, const float* packed, int64_t count, float* scores,
               Ahead ahead) {
  for (int64_t i = 0; i < count; i += kGemmCols, packed += kGemmCols * p.D) {
    Vec total[2] = {};
    int64_t j = 0;
    for (; j + kGemmRows <= p.J; j += kGemmRows) {
      ahead.fetch();
      add_heads<kGemmRows>(q + j * p.D, p.D, packed, w + j, total);
    }
    for (; j + 4 <= p.J; j += 4) add_heads<4>(q + j * p.D, p.D, packed, w + j, total);
    for (; j + 2 <= p.J; j += 2) add_heads<2>(q + j * p.D, p.D, packed, w + j, total);
    for (; j < p.J; ++j) add_heads<1>(q + j * p.D, p.D, packed, w + j, total);
    for (int v = 0; v < 2; ++v)
      if (i + v * kLanes < count) write(scores, Storage::f32, i + v * kLanes, count - i - v * kLanes, total[v]);
  }
}

// Pages that hold keys [key, key + count), the first of which begins one: each(page, its keys, how many went before).
template <class Each>
void for_pages(const IndexerParams& p, int64_t key, int64_t count, const Each& each) {
  for (int64_t done = 0; done < count; done += kPageKeys)
    each(element(p.k, p.type, p.pages[(key + done) / kPageKeys] * p.D * kPageKeys), std::min(kPageKeys, count - done), done);
}

// A page's keys lie [D][64]: panels of them are copied, and widened, in the order in which memory is read fastest.
template <class T>
void copy_panels(const T* page, int64_t D, int64_t count, float* to) {
  for (int64_t d = 0; d < D; ++d, page += kPageKeys, to += kGemmCols)
    for (int64_t i = 0; i < count; i += kGemmCols)
      for (int v = 0; v < kGemmCols; v += kLanes) store(to + i * D + v, load_as_f32(page + i + v, false));
}

// The page behind that of `key`, for one row: its few heads take little longer than the page takes to arrive.
Ahead next_page(const IndexerParams& p, int64_t key, int64_t last) {
  int64_t next = key / kPageKeys + 1, calls = kPageKeys / kGemmCols * std::max<int64_t>(1, p.J / kGemmRows);
  if (next * kPageKeys >= last) return {};
  int64_t bytes = p.D * kPageKeys * (p.type == Storage::f32 ? 4 : 2);
  const char* at = static_cast<const char*>(element(p.k, p.type, p.pages[next] * p.D * kPageKeys));
  return {at, at + bytes, (bytes / calls + 63) / 64 * 64};
}

// Heads longer than one FMA chain of a product: the dots are stored.
void score_long_heads(const IndexerParams& p, int64_t first, int64_t last, int64_t key, int64_t count, float* scores,
                      int64_t stride) {
  static thread_local std::vector<float> dots;
  dots.resize(std::max<size_t>(dots.size(), kIndexerRows * p.J * count));
  GemmParams product = dot_products(p, first, last - first, p.pages ? 0 : key, count);
  product.c = dots.data(), product.c_row = count;
  if (p.pages)
    for_pages(p, key, count, [&](const void* page, int64_t keys, int64_t done) {
      GemmParams part = product;
      part.b = page, part.N = keys, part.b_row = kPageKeys, part.b_col = 1;
      part.c = dots.data() + done;
      gemm_serial(part);
    });
  else gemm_serial(product);
  for (int64_t r = 0; r < last - first; ++r)
    weigh(dots.data() + r * p.J * count, p.w + (first + r) * p.J, p.J, count, count, scores + r * stride);
}

}  // namespace

void indexer_score_block(const IndexerParams& p, int64_t first, int64_t last, int64_t key, int64_t count, float* scores,
                         int64_t stride) {
  static thread_local std::vector<float> packed, widened;
  int64_t row_size = p.J * p.D, rows = last - first;
  packed.resize(std::max<size_t>(packed.size(), (kIndexerTile + kGemmCols) * p.D));
  const float* q = static_cast<const float*>(p.q) + first * row_size;
  if (p.type == Storage::bf16) {
    widened.resize(std::max<size_t>(widened.size(), rows * row_size));
    widen_lines(static_cast<const uint16_t*>(p.q) + first * row_size, row_size, 1, rows, row_size, widened.data(), row_size);
    q = widened.data();
  }
  bool by_page = p.pages && rows == 1;
  int64_t tile = by_page ? kPageKeys : kIndexerTile;
  for (int64_t at = 0; at < count; at += tile) {
    int64_t keys = std::min(tile, count - at);
    if (p.D > kGemmK) {
      score_long_heads(p, first, last, key + at, keys, scores + at, stride);
      continue;
    }
    if (p.pages)
      for_pages(p, key + at, keys, [&](const void* page, int64_t some, int64_t done) {
        if (p.type == Storage::f32) copy_panels(static_cast<const float*>(page), p.D, some, packed.data() + done * p.D);
        else copy_panels(static_cast<const uint16_t*>(page), p.D, some, packed.data() + done * p.D);
      });
    else pack_b<Singles>(dot_products(p, first, rows, key + at, keys), 0, p.D, 0, keys, packed.data());
    for (int64_t r = 0; r < rows; ++r)
      score_row(p, q + r * row_size, p.w + (first + r) * p.J, packed.data(), keys, scores + r * stride + at,
                by_page ? next_page(p, key + at, key + count) : Ahead{});
  }
}

void indexer_select_block(const IndexerParams& p, int64_t first, int64_t last, int64_t k, int32_t* selected) {
  static thread_local TopK best[kIndexerRows];
  int64_t rows = last - first, begin = p.visible[2 * first], end = begin;
  for (int64_t r = 0; r < rows; ++r) {
    best[r].start(k);
    end = std::max<int64_t>(end, p.visible[2 * (first + r) + 1]);
  }
  float scores[kIndexerRows * kIndexerTile] = {};
  for (int64_t key = begin; key < end; key += kIndexerTile) {
    int64_t count = std::min(kIndexerTile, end - key);
    // Where all keys are chosen, no score matters.
    if (end - begin > k) indexer_score_block(p, first, last, key, count, scores, kIndexerTile);
    for (int64_t r = 0; r < rows; ++r)
      best[r].add(scores + r * kIndexerTile, std::min(count, p.visible[2 * (first + r) + 1] - key), int32_t(key));
  }
  for (int64_t r = 0; r < rows; ++r) {
    int32_t* out = selected + (first + r) * k;
    std::fill(out + best[r].finish(out), out + k, -1);
  }
}

void top_k_row(const float* scores, int64_t count, int64_t k, int32_t offset, int32_t* selected) {
  static thread_local TopK best;
  best.start(k);
  best.add_all(scores, count, offset);
  std::fill(selected + best.finish(selected), selected + k, -1);
}

}  // namespace fulgur::FULGUR_ISA
