#include "fulgur/ops/indexer/kernels.h"

#include "fulgur/ops/indexer/dots.h"
#include "fulgur/ops/indexer/top_k.h"

namespace fulgur::FULGUR_ISA {
namespace {

// Query rows as the products read them: words, the heads' weights with what scales the words, and of integers the heads' sums.
struct Queries {
  const float *words, *weights;
  int64_t head;                   // words of one
  const int32_t* sums = nullptr;  // times what a key's bytes are above their values

  const float* row(const IndexerParams& p, int64_t r) const { return words + r * p.J * head; }
};

void write_scores(Vec (&total)[2], const float* scales, int64_t i, int64_t count, float* scores) {
  for (int v = 0; v < 2; ++v) {
    int64_t at = i + v * kLanes;
    if (at >= count) continue;
    if (scales) total[v] *= load(scales + at);
    write(scores, Storage::f32, at, count - at, total[v]);
  }
}

// One row's scores with the keys of a tile, which have scales where they are integers; keys_at(i, g): where those of a group from
// the i-th on are.
template <class Math, class KeysAt>
void score_row(const IndexerParams& p, const float* q, int64_t words, const float* w, const int32_t* sums, const KeysAt& keys_at,
               const float* scales, int64_t count, float* scores, Ahead& ahead) {
  for (int64_t i = 0; i < count; i += kGemmCols) {
    Vec total[2] = {};
    using Keys = decltype(keys_at(i, 0));
    for (int64_t g = 0, j = 0; g < p.G; ++g) {
      auto keys = keys_at(i, g);
      int64_t end = (g + 1) * p.J / p.G;
      auto add = [&]<int Heads>(std::integral_constant<int, Heads>) {
        add_heads<Heads, Math>(q + j * words, words, keys, w + j, sums + j, ahead, total);
        ahead.at += words * ahead.step, j += Heads;
      };
      while (j + kGemmRows <= end && end - j != 2 * kHalfRows) add(std::integral_constant<int, kGemmRows>());
      while (j + kHalfRows <= end) add(std::integral_constant<int, kHalfRows>());
      while (j + 4 <= end) add(std::integral_constant<int, 4>());
      while (j + 2 <= end) add(std::integral_constant<int, 2>());
      while (j < end) add(std::integral_constant<int, 1>());
    }
    Keys::in_order(total);
    write_scores(total, scales, i, count, scores);
  }
}

// Groups of so many heads, as many rows at once as registers hold: how many rows of `rows` it did.
template <int Heads, class Math, class KeysAt>
int64_t score_rows(const IndexerParams& p, const Queries& q, int64_t rows, const KeysAt& keys_at, const float* scales,
                   int64_t count, float* scores, int64_t stride) {
  constexpr int kRows = kGemmRows / Heads;
  int64_t done = 0;
  if constexpr (kRows > 1)
    for (; done + kRows <= rows; done += kRows)
      for (int64_t i = 0; i < count; i += kGemmCols) {
        Vec total[kRows][2] = {};
        for (int64_t g = 0; g < p.G; ++g) {
          int64_t head = done * p.J + g * Heads;
          add_heads_of_rows<kRows, Heads, Math>(q.words + head * q.head, q.head, p.J, keys_at(i, g), q.weights + head,
                                                q.sums ? q.sums + head : nullptr, total);
        }
        for (int r = 0; r < kRows; ++r) write_scores(total[r], scales, i, count, scores + (done + r) * stride);
      }
  return done;
}

// Rows with few heads a group; others are left to score_row, one at a time.
template <class Math, class KeysAt>
int64_t score_few_heads(const IndexerParams& p, const Queries& q, int64_t rows, const KeysAt& keys_at, const float* scales,
                        int64_t count, float* scores, int64_t stride) {
  if (p.J % p.G != 0) return 0;
  switch (p.J / p.G) {
    case 1:
      return score_rows<1, Math>(p, q, rows, keys_at, scales, count, scores, stride);
    case 2:
      return score_rows<2, Math>(p, q, rows, keys_at, scales, count, scores, stride);
    case 3:
      return score_rows<3, Math>(p, q, rows, keys_at, scales, count, scores, stride);
    case 4:
      return score_rows<4, Math>(p, q, rows, keys_at, scales, count, scores, stride);
    case 6:
      return score_rows<6, Math>(p, q, rows, keys_at, scales, count, scores, stride);
    default:
      return 0;
  }
}

// Pages that hold keys [key, key + count), the first of which begins one: each(page, its keys, how many went before).
template <class Each>
void for_pages(const IndexerParams& p, int64_t key, int64_t count, const Each& each) {
  for (int64_t done = 0; done < count; done += kPageKeys) each(p.page(key + done), std::min(kPageKeys, count - done), done);
}

// A page's keys lie [D][64]: panels of them are copied, and widened, in the order in which memory is read fastest.
template <class T>
void copy_panels(const void* from, int64_t group, int64_t D, int64_t count, float* to) {
  const T* page = static_cast<const T*>(from) + group * D * kPageKeys;
  for (int64_t d = 0; d < D; ++d, page += kPageKeys, to += kGemmCols)
    for (int64_t i = 0; i < count; i += kGemmCols)
      for (int v = 0; v < kGemmCols; v += kLanes) store(to + i * D + v, load_as_f32(page + i + v, false));
}

// Keys of e4m3 one behind the other, of which D are the group's, and their scales: squares of kLanes of each are turned.
void turn_panels(const uint8_t* page, int64_t key_size, int64_t group, int64_t D, int64_t count, float* to) {
  const auto* scales = reinterpret_cast<const float*>(page + kPageKeys * key_size);
  for (int64_t i = 0; i < count; i += kLanes) {
    float* column = to + i / kGemmCols * kGemmCols * D + i % kGemmCols;
    Vec scale = load(scales + i);
    for (int64_t d = 0; d < D; d += kLanes) {
      int64_t some = std::min<int64_t>(kLanes, D - d);
      Vec square[kLanes];
      for (int key = 0; key < kLanes; ++key) {
        const uint8_t* at = page + (i + key) * key_size + group * D + d;
        uint8_t part[kLanes] = {};
        if (some < kLanes) at = std::copy_n(at, some, part) - some;
        square[key] = small_e4m3(at) * 0x1p120f;
      }
      transpose(square);
      for (int64_t lane = 0; lane < some; ++lane) store(column + (d + lane) * kGemmCols, square[lane] * scale);
    }
  }
}

// Products with a group of a page's keys, which lie key by key.
GemmParams page_products(const IndexerParams& p, const uint8_t* page, int64_t group) {
  GemmParams product = dot_products(p, 0, 0, 0, kPageKeys);
  product.b = element(page, p.type, group * p.key_group), product.b_col = p.key_row;
  return product;
}

// A group of keys [key, key + count) as panels of words; of integers their scales too.
void pack_keys(const IndexerParams& p, int64_t group, int64_t key, int64_t count, float* packed, float* scales) {
  if (!p.pages) return pack_b<Singles>(dot_products(p, 0, 0, key, count, group), 0, p.D, 0, count, packed);
  for_pages(p, key, count, [&](const uint8_t* page, int64_t some, int64_t done) {
    if (p.key_row > 0) {
      pack_b<Singles>(page_products(p, page, group), 0, p.D, 0, some, packed + done * p.D);
    } else if (p.format == KeyFormat::int8) {
      copy_panels<float>(page, group, p.D / 4, some, packed + done * p.D / 4);
      std::memcpy(scales + done, page + kPageKeys * p.key_size(), kPageKeys * sizeof(float));
    } else if (p.format == KeyFormat::fp8) turn_panels(page, p.key_size(), group, p.D, some, packed + done * p.D);
    else if (p.type == Storage::f32) copy_panels<float>(page, group, p.D, some, packed + done * p.D);
    else copy_panels<uint16_t>(page, group, p.D, some, packed + done * p.D);
  });
}

// Rows [first, last): as they are, widened, or as integers.
Queries queries_of(const IndexerParams& p, int64_t first, int64_t last) {
  static thread_local std::vector<float> word_room, weights;
  static thread_local std::vector<int32_t> sums;
  int64_t heads = (last - first) * p.J;
  const void* q = element(p.q, p.type, first * p.J * p.D);
  const float* w = p.w + first * p.J;
  if (p.format == KeyFormat::int8) {
    float* words = lines_of(word_room, (heads + kTileRows) * p.D / 4);
    weights.resize(std::max<size_t>(weights.size(), heads));
    sums.resize(std::max<size_t>(sums.size(), heads));
    for (int64_t i = 0; i < heads; ++i) {
      IntegerGroup group;
      integer_row(element(q, p.type, i * p.D), p.type, p.D, reinterpret_cast<int8_t*>(words + i * p.D / 4), &group);
      weights[i] = group.scale * w[i];
      sums[i] = 128 * (group.sums[0] + group.sums[1] + group.sums[2] + group.sums[3]);
    }
    return {words, weights.data(), p.D / 4, sums.data()};
  }
  if (p.type == Storage::f32) return {static_cast<const float*>(q), w, p.D};
  word_room.resize(std::max<size_t>(word_room.size(), heads * p.D));
  widen_lines(static_cast<const uint16_t*>(q), p.D, 1, heads, p.D, word_room.data(), p.D);
  return {word_room.data(), w, p.D};
}

// Integers of many rows by a page's keys where they lie, 16 heads by 32 keys at a time.
void score_page_in_tiles(const IndexerParams& p, const Queries& q, int64_t rows, const uint8_t* page, int64_t count,
                         float* scores, int64_t stride) {
  constexpr int64_t kLine = 4 * kPageKeys;
  const auto* scales = reinterpret_cast<const float*>(page + kPageKeys * p.D);
  const auto* queries = reinterpret_cast<const int8_t*>(q.words);
  int64_t steps = p.D / kTileK, run = std::min(p.J, kTileRows);  // heads of one row in a tile
  for (int64_t i = 0; i < count; i += kGemmCols) {
    Tiles::load_keys(page + 4 * i, kLine, steps);
    Vec total[kIndexerRows][2] = {};
    for (int64_t head = 0; head < rows * p.J;) {
      alignas(64) int32_t sums[2 * 256];
      Tiles::dot_keys(queries + head * p.D, p.D, steps, sums);
      for (const int32_t* line = sums; line < sums + 256 && head < rows * p.J; line += run * kLanes, head += run) {
        Vec(&of_row)[2] = total[head / p.J];
        for (int64_t j = 0; j < run; ++j)
          for (int v = 0; v < 2; ++v) {
            Vec dots = sums_of_integers(load(reinterpret_cast<const float*>(line + v * 256 + j * kLanes)), q.sums[head + j]);
            of_row[v] = fma(max(dots, Vec{}), splat(q.weights[head + j]), of_row[v]);
          }
      }
    }
    for (int64_t r = 0; r < rows; ++r) write_scores(total[r], scales, i, count, scores + r * stride);
  }
}

bool tiles_serve(const IndexerParams& p, int64_t rows) {
  return kHasTiles && integer_tiles() && p.format == KeyFormat::int8 && rows > 1 && p.G == 1 && p.D % kTileK == 0 &&
         (p.J % kTileRows == 0 || kTileRows % p.J == 0);
}

// The page behind that of `key`: a few rows' few heads take little longer than it takes to arrive. Else memory that is here.
Ahead next_page(const IndexerParams& p, const Queries& q, int64_t rows, int64_t key, int64_t last) {
  int64_t next = (key / kPageKeys + 1) * kPageKeys;
  if (!p.pages || next >= last || p.key_row > 0) return {reinterpret_cast<const char*>(q.words), 0};
  int64_t calls = rows * kPageKeys / kGemmCols * p.G * ((p.J / p.G + kGemmRows - 1) / kGemmRows);
  return {reinterpret_cast<const char*>(p.page(next)), (p.page_bytes() + calls * q.head - 1) / (calls * q.head)};
}

// Heads longer than one FMA chain of a product: the dots are stored.
void score_long_heads(const IndexerParams& p, int64_t first, int64_t last, int64_t key, int64_t count, float* scores,
                      int64_t stride) {
  static thread_local std::vector<float> dots;
  dots.resize(std::max<size_t>(dots.size(), kIndexerRows * p.J * count));
  for_products(p, first, last - first, p.pages ? 0 : key, count, dots.data(), count, [&](GemmParams product, int64_t j, int64_t) {
    if (!p.pages) return gemm_serial(product);
    for_pages(p, key, count, [&](const uint8_t* page, int64_t keys, int64_t done) {
      GemmParams part = product;
      int64_t group = j * p.G / p.J;
      if (p.key_row > 0) part.b = page_products(p, page, group).b, part.b_row = 1, part.b_col = p.key_row;
      else part.b = element(page, p.type, group * p.D * kPageKeys), part.b_row = kPageKeys, part.b_col = 1;
      part.N = keys;
      part.c = static_cast<float*>(product.c) + done;
      gemm_serial(part);
    });
  });
  for (int64_t r = 0; r < last - first; ++r)
    weigh(dots.data() + r * p.J * count, p.w + (first + r) * p.J, p.J, count, count, scores + r * stride);
}

// Scores of rows [first, last), whose queries these are, with keys [key, key + count).
void score_keys(const IndexerParams& p, const Queries& q, int64_t first, int64_t last, int64_t key, int64_t count, float* scores,
                int64_t stride) {
  static thread_local std::vector<float> packed;
  int64_t panels = (kIndexerTile + kGemmCols) * p.D;  // of one group
  packed.resize(std::max<size_t>(packed.size(), p.G * panels));
  float scales[kIndexerTile + kPageKeys];
  int64_t rows = last - first;
  bool integers = p.format == KeyFormat::int8;
  if (tiles_serve(p, rows)) {
    [[maybe_unused]] Tiles registers;
    return for_pages(p, key, count, [&](const uint8_t* page, int64_t some, int64_t done) {
      score_page_in_tiles(p, q, rows, page, some, scores + done, stride);
    });
  }
  int64_t tile = p.pages ? kPageKeys : kIndexerTile;
  for (int64_t at = 0; at < count; at += tile) {
    int64_t keys = std::min(tile, count - at);
    if (p.D > kGemmK) {
      score_long_heads(p, first, last, key + at, keys, scores + at, stride);
      continue;
    }
    Ahead ahead = next_page(p, q, rows, key + at, key + count);
    if (p.pages && rows == 1 && p.key_row == 0 && p.format == KeyFormat::plain &&
        p.type == Storage::bf16) {  // read where they lie
      const auto* page = reinterpret_cast<const uint16_t*>(p.page(key + at));
      score_row<Singles>(
          p, q.words, q.head, q.weights, nullptr, [&](int64_t i, int64_t g) { return PageKeys{page + g * p.D * kPageKeys + i}; },
          nullptr, keys, scores + at, ahead);
      continue;
    }
    for (int64_t g = 0; g < p.G; ++g) pack_keys(p, g, key + at, keys, packed.data() + g * panels, scales);
    auto in_panels = [&](int64_t i, int64_t g) { return PackedKeys{packed.data() + g * panels + i * q.head}; };
    int64_t done = integers ? score_few_heads<IntQuads>(p, q, rows, in_panels, scales, keys, scores + at, stride)
                            : score_few_heads<Singles>(p, q, rows, in_panels, nullptr, keys, scores + at, stride);
    for (int64_t i = 0; i < keys && done < rows; i += kGemmCols) {  // a panel stays in the first-level cache, queries come and go
      auto panel = [&](int64_t, int64_t g) { return in_panels(i, g); };
      int64_t some = std::min<int64_t>(kGemmCols, keys - i);
      for (int64_t r = done; r < rows; ++r) {
        float* to = scores + r * stride + at + i;
        const float* w = q.weights + r * p.J;
        if (integers) score_row<IntQuads>(p, q.row(p, r), q.head, w, q.sums + r * p.J, panel, scales + i, some, to, ahead);
        else score_row<Singles>(p, q.row(p, r), q.head, w, nullptr, panel, nullptr, some, to, ahead);
      }
    }
  }
}

}  // namespace

void indexer_score_block(const IndexerParams& p, int64_t first, int64_t last, int64_t key, int64_t count, float* scores,
                         int64_t stride) {
  score_keys(p, queries_of(p, first, last), first, last, key, count, scores, stride);
}

void indexer_select_block(const IndexerParams& p, int64_t first, int64_t last, int64_t k, int32_t* selected) {
  static thread_local TopK best[kIndexerRows];
  int64_t rows = last - first, begin = p.visible[2 * first], end = begin;
  for (int64_t r = 0; r < rows; ++r) {
    best[r].start(k);
    end = std::max<int64_t>(end, p.visible[2 * (first + r) + 1]);
  }
  bool all = end - begin <= k;  // are chosen: no score matters
  Queries q = all ? Queries{} : queries_of(p, first, last);
  float scores[kIndexerRows * kIndexerTile] = {};
  for (int64_t key = begin; key < end; key += kIndexerTile) {
    int64_t count = std::min(kIndexerTile, end - key);
    if (!all) score_keys(p, q, first, last, key, count, scores, kIndexerTile);
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
