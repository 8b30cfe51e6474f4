#include "fulgur/ops/indexer_kl/kernels.h"

#include <cfloat>

#include "fulgur/ops/indexer/dots.h"
#include "fulgur/ops/linear/gathered_kernel.h"

namespace fulgur::FULGUR_ISA {
namespace {

float* scratch(size_t slot, size_t size) {
  static thread_local std::vector<float> buffers[3];
  if (buffers[slot].size() < size) buffers[slot].resize(size);
  return buffers[slot].data();
}

// log(sum exp) of a stream of scores.
struct LogSumExp {
  float top = -INFINITY;
  double total = 0;

  void add(const float* scores, int64_t count) {
    float new_top = top;
    for (int64_t i = 0; i < count; ++i) new_top = new_top < scores[i] ? scores[i] : new_top;
    if (new_top == -INFINITY) return;
    total *= std::exp(double(top) - double(new_top));
    top = new_top;
    Vec added{};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) added += exp(load(scores + i) - top);
    total += sum(added);
    for (; i < count; ++i) total += exp(scores[i] - top);
  }
  double value() const { return double(top) + std::log(total); }
};

// KL = sum p log p - sum p I + sum p * lse(I); `sums` holds the three.
void add_sums(const float* target, const float* scores, int64_t count, double* sums) {
  Vec entropy{}, cross{}, mass{};
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec p = read(target, Storage::f32, i, count - i), score = read(scores, Storage::f32, i, count - i);
    entropy = fma(p, log(max(p, splat(FLT_MIN))), entropy);
    cross = fma(p, score, cross);
    mass += p;
  }
  sums[0] += sum(entropy), sums[1] += sum(cross), sums[2] += sum(mass);
}

// p[r][i] = mean over heads of the attention's probabilities, 0 beyond each row's end.
void attention_tile(const IndexerKlParams& p, int64_t first, int64_t rows, int64_t key, int64_t count, float* target) {
  float* scores = scratch(0, kKlRows * kIndexerTile);
  int64_t row_stride = p.H * p.E;
  std::fill(target, target + rows * kIndexerTile, 0.0f);
  for (int64_t h = 0; h < p.H; ++h) {
    gemm_serial({.a = element(p.aq, p.attention_type, (first * p.H + h) * p.E),
                 .b = element(p.ak, p.attention_type, (key * p.HK + h * p.HK / p.H) * p.E),
                 .c = scores,
                 .M = rows,
                 .N = count,
                 .K = p.E,
                 .a_row = row_stride,
                 .a_col = 1,
                 .b_row = 1,
                 .b_col = p.HK * p.E,
                 .c_row = kIndexerTile,
                 .a_type = p.attention_type,
                 .b_type = p.attention_type});
    for (int64_t r = 0; r < rows; ++r) {
      int64_t seen = std::clamp<int64_t>(p.indexer.visible[2 * (first + r) + 1] - key, 0, count);
      float lse = p.attention_lse[(first + r) * p.H + h];
      float* at = target + r * kIndexerTile;
      for (int64_t i = 0; i < seen; i += kLanes) {
        Vec e = exp(read(scores, Storage::f32, r * kIndexerTile + i, seen - i) * p.scale - lse);
        write(at, Storage::f32, i, seen - i, read(at, Storage::f32, i, seen - i) + e);
      }
    }
  }
  float share = 1.0f / float(p.H);
  for (int64_t i = 0; i < rows * kIndexerTile; ++i) target[i] *= share;
}

// Turns one row's dots into c[j][i] = g_i * w_j * 1[dot > 0], 0 behind the first `seen`, adding dw_j = sum_i g_i relu(dot).
void weigh_backward(const float* gradient, const float* w, int64_t J, int64_t stride, int64_t seen, int64_t count, float* dots,
                    float* dw) {
  for (int64_t j = 0; j < J; ++j, dots += stride) {
    Vec along{};
    for (int64_t i = 0; i < seen; i += kLanes) {
      Vec dot = read(dots, Storage::f32, i, seen - i), g = read(gradient, Storage::f32, i, seen - i);
      along = fma(g, max(dot, Vec{}), along);
      write(dots, Storage::f32, i, seen - i, dot > 0.0f ? g * w[j] : Vec{});
    }
    dw[j] += sum(along);
    std::fill(dots + seen, dots + count, 0.0f);
  }
}

// scores become dI = dkl * (softmax(I) - p).
void score_gradient(const float* target, double lse, float dkl, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec q = exp(read(scores, Storage::f32, i, count - i) - float(lse));
    write(scores, Storage::f32, i, count - i, (q - read(target, Storage::f32, i, count - i)) * dkl);
  }
}

}  // namespace

void indexer_lse_block(const IndexerKlParams& p, int64_t first, int64_t last) {
  const IndexerParams& x = p.indexer;
  int64_t rows = last - first, begin = x.visible[2 * first], end = begin;
  for (int64_t row = first; row < last; ++row) end = std::max<int64_t>(end, x.visible[2 * row + 1]);
  LogSumExp state[kIndexerRows];
  float scores[kIndexerRows * kIndexerTile];
  for (int64_t key = begin; key < end; key += kIndexerTile) {
    int64_t count = std::min(kIndexerTile, end - key);
    indexer_score_block(x, first, last, key, count, scores, kIndexerTile);
    for (int64_t r = 0; r < rows; ++r)
      state[r].add(scores + r * kIndexerTile, std::clamp<int64_t>(x.visible[2 * (first + r) + 1] - key, 0, count));
  }
  for (int64_t r = 0; r < rows; ++r) p.lse[first + r] = state[r].value();
}

// dI = dkl * (softmax(I) - p); then dq = sum_s c k_s, dk_s = sum_j c q_j with c of weigh_backward.   Spec E.3.
void indexer_kl_stripe(const IndexerKlParams& p, int64_t first, int64_t last, int64_t stripe, const KlStripe& out) {
  const IndexerParams& x = p.indexer;
  int64_t rows = last - first, begin = x.visible[2 * first], end = begin;
  for (int64_t row = first; row < last; ++row) end = std::max<int64_t>(end, x.visible[2 * row + 1]);
  int64_t step = std::clamp<int64_t>(256 / x.J, 1, 16);  // rows whose dots stay in the second-level cache
  float* target = scratch(1, kKlRows * kIndexerTile);
  float* dots = scratch(2, step * x.J * kIndexerTile);
  float scores[kIndexerTile];
  for (int64_t key = begin + stripe * kIndexerTile; key < end; key += kKlStripes * kIndexerTile) {
    int64_t count = std::min(kIndexerTile, end - key);
    attention_tile(p, first, rows, key, count, target);
    for (int64_t r0 = 0; r0 < rows; r0 += step) {
      int64_t some = std::min(step, rows - r0);
      for_products(x, first + r0, some, key, count, dots, kIndexerTile,
                   [](const GemmParams& product, int64_t, int64_t) { gemm_serial(product); });
      for (int64_t r = r0; r < r0 + some; ++r) {
        int64_t row = first + r, seen = std::clamp<int64_t>(x.visible[2 * row + 1] - key, 0, count);
        float* row_dots = dots + (r - r0) * x.J * kIndexerTile;
        weigh(row_dots, x.w + row * x.J, x.J, kIndexerTile, seen, scores);
        add_sums(target + r * kIndexerTile, scores, seen, out.sums + 3 * r);
        if (!p.dkl) continue;
        score_gradient(target + r * kIndexerTile, p.lse[row], p.dkl[row], seen, scores);
        weigh_backward(scores, x.w + row * x.J, x.J, kIndexerTile, seen, count, row_dots, out.dw + r * x.J);
      }
      if (!p.dkl) continue;
      for_products(x, first + r0, some, key, count, dots, kIndexerTile, [&](const GemmParams& product, int64_t j, int64_t heads) {
        gemm_serial({.a = product.c,
                     .b = product.b,
                     .c = out.dq + (r0 * x.J + j) * x.D,
                     .M = product.M,
                     .N = x.D,
                     .K = count,
                     .a_row = product.c_row,
                     .a_col = 1,
                     .b_row = x.key_size(),
                     .b_col = 1,
                     .c_row = heads * x.D,
                     .b_type = x.type,
                     .accumulate = true});
        if (p.dk)
          gemm_serial({.a = product.c,
                       .b = product.a,
                       .c = p.dk + key * x.key_size() + j * x.G / x.J * x.D,
                       .M = count,
                       .N = x.D,
                       .K = product.M,
                       .a_row = 1,
                       .a_col = product.c_row,
                       .b_row = product.a_row,
                       .b_col = 1,
                       .c_row = x.key_size(),
                       .b_type = x.type,
                       .accumulate = true});
      });
    }
  }
}

void indexer_kl_sparse_row(const IndexerKlParams& p, int64_t row, float* dots, int64_t stride, float* lines) {
  const IndexerParams& x = p.indexer;
  const int32_t* keys = p.selected + row * p.K;
  const float* target = p.target + row * p.K;
  int64_t count = std::find(keys, keys + p.K, -1) - keys;
  float* scores = scratch(0, stride);
  p.kl[row] = 0;
  if (count == 0) return;
  for (int64_t g = 0, heads = x.J / x.G; g < x.G; ++g) {
    GemmParams product = dot_products(x, row, 1, 0, count, g);
    product.a = element(product.a, x.type, g * heads * x.D), product.M = heads;
    product.b_columns = keys, product.c = dots + g * heads * stride, product.c_row = stride;
    dot_gathered(product, heads);
  }
  weigh(dots, x.w + row * x.J, x.J, stride, count, scores);
  LogSumExp state;
  state.add(scores, count);
  double sums[3] = {}, lse = state.value();
  add_sums(target, scores, count, sums);
  if (sums[2] > 0) p.kl[row] = float(sums[0] - sums[1] + sums[2] * lse);
  if (!p.dkl) return;
  score_gradient(target, lse, p.dkl[row], count, scores);
  weigh_backward(scores, x.w + row * x.J, x.J, stride, count, count, dots, p.dw + row * x.J);
  for (int64_t g = 0, heads = x.J / x.G; g < x.G; ++g)
    gemm_serial({.a = dots + g * heads * stride,
                 .b = element(x.k, x.type, g * x.D),
                 .c = p.dq + (row * x.J + g * heads) * x.D,
                 .M = heads,
                 .N = x.D,
                 .K = count,
                 .a_row = stride,
                 .a_col = 1,
                 .b_row = x.key_size(),
                 .b_col = 1,
                 .c_row = x.D,
                 .b_type = x.type,
                 .b_rows = keys});
  if (!lines) return;
  for (int64_t i = 0; i < x.J * x.D; i += kLanes)
    write(lines, Storage::f32, i, x.J * x.D - i, read(x.q, x.type, row * x.J * x.D + i, x.J * x.D - i));
}

}  // namespace fulgur::FULGUR_ISA
