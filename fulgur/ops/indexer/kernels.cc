#include "fulgur/ops/indexer/kernels.h"

#include "fulgur/ops/indexer/top_k.h"
#include "fulgur/ops/linear/gemm_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

const void* element(const void* base, Storage type, int64_t offset) {
  return static_cast<const char*>(base) + offset * (type == Storage::f32 ? 4 : 2);
}

// dots[(r * J + j) * stride + i] = q[first + r, j] . k[i], for `count` keys at `k`; with `chosen`, for the keys of these numbers.
void dot_products(const IndexerParams& p, int64_t first, int64_t rows, const void* k, const int32_t* chosen, int64_t count,
                  float* dots, int64_t stride) {
  gemm_serial({.a = element(p.q, p.type, first * p.J * p.D),
               .b = k,
               .c = dots,
               .M = rows * p.J,
               .N = count,
               .K = p.D,
               .a_row = p.D,
               .a_col = 1,
               .b_row = 1,
               .b_col = p.D,
               .c_row = stride,
               .a_type = p.type,
               .b_type = p.type,
               .b_columns = chosen});
}

// One row: scores[i] = sum_j w_j relu(dots[j][i]), heads in ascending order; whole vectors, dots are padded.
void weigh(const float* dots, const float* w, int64_t J, int64_t stride, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec total{};
    for (int64_t j = 0; j < J; ++j)
      total = fma(max(Vec{}, read(dots, Storage::f32, j * stride + i, count - i)), splat(w[j]), total);
    write(scores, Storage::f32, i, count - i, total);
  }
}

float* scratch(size_t slot, size_t size) {
  static thread_local std::vector<float> buffers[4];
  if (buffers[slot].size() < size) buffers[slot].resize(size);
  return buffers[slot].data();
}

// p[r][i] = mean over heads of the attention's probabilities, 0 beyond each row's end.
void attention_tile(const IndexerKlParams& p, int64_t first, int64_t rows, int64_t key, int64_t count, float* target) {
  float* scores = scratch(1, kIndexerRows * kIndexerTile);
  int64_t row_stride = p.H * p.E;
  std::fill(target, target + rows * kIndexerTile, 0.0f);
  for (int64_t h = 0; h < p.H; ++h) {
    gemm_serial({.a = element(p.aq, p.attention_type, (first * p.H + h) * p.E),
                 .b = element(p.ak, p.attention_type, (key * p.H + h) * p.E),
                 .c = scores,
                 .M = rows,
                 .N = count,
                 .K = p.E,
                 .a_row = row_stride,
                 .a_col = 1,
                 .b_row = 1,
                 .b_col = row_stride,
                 .c_row = kIndexerTile,
                 .a_type = p.attention_type,
                 .b_type = p.attention_type});
    for (int64_t r = 0; r < rows; ++r) {
      int64_t seen = std::clamp<int64_t>(p.indexer.visible[2 * (first + r) + 1] - key, 0, count);
      float lse = p.attention_lse[(first + r) * p.H + h];
      for (int64_t i = 0; i < seen; i += kLanes) {
        float* at = target + r * kIndexerTile;
        Vec e = exp(read(scores, Storage::f32, r * kIndexerTile + i, seen - i) * p.scale - lse);
        write(at, Storage::f32, i, seen - i, read(at, Storage::f32, i, seen - i) + e);
      }
    }
  }
  float share = 1.0f / float(p.H);
  for (int64_t i = 0; i < rows * kIndexerTile; ++i) target[i] *= share;
}

// Running KL of one row: KL = sum p log p - sum p I + sum p * lse(I).
struct RowKl {
  float top = -INFINITY;
  double total = 0, entropy = 0, cross = 0, mass = 0;

  void add(const float* target, const float* scores, int64_t count) {
    if (count == 0) return;
    float new_top = top;
    for (int64_t i = 0; i < count; ++i) new_top = new_top < scores[i] ? scores[i] : new_top;
    if (new_top == -INFINITY) return;
    total *= std::exp(double(top) - double(new_top));
    top = new_top;
    for (int64_t i = 0; i < count; i += kLanes) {
      float e[kLanes];
      store(e, exp(read(scores, Storage::f32, i, count - i) - top));
      for (int64_t l = 0; l < std::min<int64_t>(kLanes, count - i); ++l) total += e[l];
    }
    for (int64_t i = 0; i < count; ++i) {
      double p = target[i];
      if (p > 0) entropy += p * std::log(p);
      cross += p * scores[i], mass += p;
    }
  }
  double lse() const { return double(top) + std::log(total); }
  double kl() const { return mass > 0 ? entropy - cross + mass * lse() : 0; }
};

}  // namespace

void indexer_score_block(const IndexerParams& p, int64_t first, int64_t last, int64_t key, int64_t count, float* scores,
                         int64_t stride) {
  int64_t rows = last - first;
  float* dots = scratch(0, kIndexerRows * p.J * kIndexerTile);
  for (int64_t at = 0; at < count; at += kIndexerTile) {
    int64_t keys = std::min(kIndexerTile, count - at);
    dot_products(p, first, rows, element(p.k, p.type, (key + at) * p.D), nullptr, keys, dots, kIndexerTile);
    for (int64_t r = 0; r < rows; ++r)
      weigh(dots + r * p.J * kIndexerTile, p.w + (first + r) * p.J, p.J, kIndexerTile, keys, scores + r * stride + at);
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

void indexer_kl_dense_block(const IndexerKlParams& p, int64_t first, int64_t last) {
  const IndexerParams& x = p.indexer;
  int64_t rows = last - first, begin = x.visible[2 * first], end = begin;
  for (int64_t row = first; row < last; ++row) end = std::max<int64_t>(end, x.visible[2 * row + 1]);
  RowKl state[kIndexerRows];
  float scores[kIndexerRows * kIndexerTile], target[kIndexerRows * kIndexerTile];
  for (int64_t key = begin; key < end; key += kIndexerTile) {
    int64_t count = std::min(kIndexerTile, end - key);
    indexer_score_block(x, first, last, key, count, scores, kIndexerTile);
    attention_tile(p, first, rows, key, count, target);
    for (int64_t r = 0; r < rows; ++r)
      state[r].add(target + r * kIndexerTile, scores + r * kIndexerTile,
                   std::clamp<int64_t>(x.visible[2 * (first + r) + 1] - key, 0, count));
  }
  for (int64_t r = 0; r < rows; ++r) {
    p.kl[first + r] = float(state[r].kl());
    p.lse[first + r] = float(state[r].lse());
  }
}

namespace {

// Turns one row's dots into c[j][i] = g_i * w_j * 1[dot > 0], adding dw_j = sum_i g_i relu(dot).
void weigh_backward(const float* gradient, const float* w, int64_t J, int64_t stride, int64_t count, float* dots, float* dw) {
  for (int64_t j = 0; j < J; ++j) {
    Vec along{};
    for (int64_t i = 0; i < count; i += kLanes) {
      Vec dot = read(dots, Storage::f32, j * stride + i, count - i), g = read(gradient, Storage::f32, i, count - i);
      along = fma(g, max(Vec{}, dot), along);
      write(dots, Storage::f32, j * stride + i, count - i, dot > 0.0f ? g * w[j] : Vec{});
    }
    dw[j] += sum(along);
  }
}

}  // namespace

// dI = dkl * (softmax(I) - p); then dq = sum_s c k_s, dk_s = sum_j c q_j with c of weigh_backward.   Spec E.3.
void indexer_kl_dense_backward_block(const IndexerKlParams& p, int64_t first, int64_t last) {
  const IndexerParams& x = p.indexer;
  int64_t rows = last - first, begin = x.visible[2 * first], end = begin;
  for (int64_t row = first; row < last; ++row) end = std::max<int64_t>(end, x.visible[2 * row + 1]);
  float scores[kIndexerRows * kIndexerTile], target[kIndexerRows * kIndexerTile];
  float* dots = scratch(2, kIndexerRows * x.J * kIndexerTile);
  for (int64_t key = begin; key < end; key += kIndexerTile) {
    int64_t count = std::min(kIndexerTile, end - key);
    const void* keys = element(x.k, x.type, key * x.D);
    attention_tile(p, first, rows, key, count, target);
    dot_products(x, first, rows, keys, nullptr, count, dots, kIndexerTile);
    for (int64_t r = 0; r < rows; ++r) {
      int64_t row = first + r, seen = std::clamp<int64_t>(x.visible[2 * row + 1] - key, 0, count);
      float* row_dots = dots + r * x.J * kIndexerTile;
      float* g = scores + r * kIndexerTile;
      weigh(row_dots, x.w + row * x.J, x.J, kIndexerTile, count, g);
      for (int64_t i = 0; i < count; i += kLanes) {
        Vec q = exp(read(g, Storage::f32, i, count - i) - p.lse[row]);
        write(g, Storage::f32, i, count - i, (q - load(target + r * kIndexerTile + i)) * p.dkl[row]);
      }
      std::fill(g + seen, g + kIndexerTile, 0.0f);
      weigh_backward(g, x.w + row * x.J, x.J, kIndexerTile, count, row_dots, p.dw + row * x.J);
    }
    gemm_serial({.a = dots,
                 .b = keys,
                 .c = p.dq + first * x.J * x.D,
                 .M = rows * x.J,
                 .N = x.D,
                 .K = count,
                 .a_row = kIndexerTile,
                 .a_col = 1,
                 .b_row = x.D,
                 .b_col = 1,
                 .c_row = x.D,
                 .b_type = x.type,
                 .accumulate = true});
    gemm_serial({.a = dots,
                 .b = element(x.q, x.type, first * x.J * x.D),
                 .c = p.dk + key * x.D,
                 .M = count,
                 .N = x.D,
                 .K = rows * x.J,
                 .a_row = 1,
                 .a_col = kIndexerTile,
                 .b_row = x.D,
                 .b_col = 1,
                 .c_row = x.D,
                 .b_type = x.type,
                 .accumulate = true});
  }
}

namespace {

// The row's selected keys; their targets; dots [J, K] and scores over them.
struct SelectedRow {
  int64_t count;
  const int32_t* keys;
  float *target, *dots, *scores;
};

SelectedRow selected_row(const IndexerKlParams& p, int64_t row) {
  const IndexerParams& x = p.indexer;
  static thread_local std::vector<int32_t> keys;
  keys.resize(std::max<size_t>(keys.size(), p.K));
  float* base = scratch(3, p.K * (x.J + 2) + 4 * kLanes);
  SelectedRow out{0, keys.data(), base, base + p.K, base + p.K * (1 + x.J)};
  for (int64_t i = 0; i < p.K; ++i) {
    if (p.selected[row * p.K + i] < 0) continue;
    keys[out.count] = p.selected[row * p.K + i];
    out.target[out.count++] = p.target[row * p.K + i];
  }
  if (out.count == 0) return out;
  dot_products(x, row, 1, x.k, out.keys, out.count, out.dots, p.K);
  weigh(out.dots, x.w + row * x.J, x.J, p.K, out.count, out.scores);
  return out;
}

}  // namespace

void indexer_kl_sparse_row(const IndexerKlParams& p, int64_t row) {
  SelectedRow s = selected_row(p, row);
  RowKl state;
  state.add(s.target, s.scores, s.count);
  p.kl[row] = float(state.kl());
  p.lse[row] = float(state.lse());
}

void indexer_kl_sparse_backward_row(const IndexerKlParams& p, int64_t row, int64_t slot) {
  const IndexerParams& x = p.indexer;
  SelectedRow s = selected_row(p, row);
  if (s.count == 0) return;
  for (int64_t i = 0; i < s.count; ++i) s.scores[i] = (exp(s.scores[i] - p.lse[row]) - s.target[i]) * p.dkl[row];
  weigh_backward(s.scores, x.w + row * x.J, x.J, p.K, s.count, s.dots, p.dw + row * x.J);
  gemm_serial({.a = s.dots,
               .b = x.k,
               .c = p.dq + row * x.J * x.D,
               .M = x.J,
               .N = x.D,
               .K = s.count,
               .a_row = p.K,
               .a_col = 1,
               .b_row = x.D,
               .b_col = 1,
               .c_row = x.D,
               .b_type = x.type,
               .b_rows = s.keys});
  gemm_serial({.a = s.dots,
               .b = element(x.q, x.type, row * x.J * x.D),
               .c = p.contribution + slot * p.K * x.D,
               .M = s.count,
               .N = x.D,
               .K = x.J,
               .a_row = 1,
               .a_col = p.K,
               .b_row = x.D,
               .b_col = 1,
               .c_row = x.D,
               .b_type = x.type});
}

}  // namespace fulgur::FULGUR_ISA
