#include "fulgur/ops/sparse_mla/kernels.h"

#include "fulgur/ops/linear/gathered_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

// The rows of one row's selected keys. Products read them where they lie.
struct Keys {
  int64_t count;
  const int32_t* row;
};

Keys keys_of(const SparseMlaParams& p, int64_t row) {
  static thread_local std::vector<int32_t> rows;
  const int32_t* keys = p.selected + row * p.K;
  int64_t count = std::find(keys, keys + p.K, -1) - keys;
  if (!p.pages) return {count, keys};
  rows.resize(std::max<size_t>(rows.size(), count));
  for (int64_t i = 0; i < count; ++i) rows[i] = int32_t(row_of_key(p.pages, keys[i]));
  return {count, rows.data()};
}

// dots[h][i] = rows[h] . key_i[:length] of heads whose rows of `length` follow one another.
void dot_keys(const SparseMlaParams& p, const void* rows, int64_t length, int64_t heads, const Keys& keys, int64_t stride,
              float* dots) {
  dot_gathered({.a = rows,
                .b = p.kv,
                .c = dots,
                .M = heads,
                .N = keys.count,
                .K = length,
                .a_row = length,
                .a_col = 1,
                .b_row = 1,
                .b_col = p.C,
                .c_row = stride,
                .a_type = p.type,
                .b_type = p.type,
                .b_columns = keys.row},
               p.H);
}

// scores[h][i] = scale * q_h . key_i of heads [first, last), rows of `stride` with -inf behind the keys.
void score(const SparseMlaParams& p, int64_t row, int64_t first, int64_t last, const Keys& keys, int64_t stride, float* scores) {
  dot_keys(p, element(p.q, p.type, (row * p.H + first) * p.C), p.C, last - first, keys, stride, scores);
  for (int64_t h = 0; h < last - first; ++h) {
    float* at = scores + h * stride;
    for (int64_t i = 0; i < keys.count; ++i) at[i] *= p.scale;
    std::fill(at + keys.count, at + stride, -INFINITY);
  }
}

// Scores of a head become probabilities; returns their log-sum-exp.
float softmax(float* scores, int64_t stride) {
  Vec largest = splat(-INFINITY), total{};
  for (int64_t i = 0; i < stride; i += kLanes) largest = max(load(scores + i), largest);
  float top = max_lane(largest);
  for (int64_t i = 0; i < stride; i += kLanes) {
    Vec e = exp(load(scores + i) - top);
    store(scores + i, e);
    total += e;
  }
  float all = sum(total), inverse = 1 / all;
  for (int64_t i = 0; i < stride; i += kLanes) store(scores + i, load(scores + i) * inverse);
  return top + std::log(all);
}

int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

}  // namespace

void sparse_mla_heads(const SparseMlaParams& p, int64_t row, int64_t first, int64_t last, float* shares_GK) {
  static thread_local std::vector<float> buffer;
  Keys keys = keys_of(p, row);
  int64_t stride = padded(keys.count), heads = last - first;
  buffer.resize(std::max<size_t>(buffer.size(), heads * (stride + p.R) + 1));
  float* scores = buffer.data();
  float* out = scores + heads * stride;
  if (keys.count == 0) {
    std::fill(p.lse + row * p.H + first, p.lse + row * p.H + last, INFINITY);
    std::fill(out, out + heads * p.R, 0.0f);
  } else {
    score(p, row, first, last, keys, stride, scores);
    for (int64_t h = first; h < last; ++h) {
      float* at = scores + (h - first) * stride;
      p.lse[row * p.H + h] = softmax(at, stride);
      float* share = shares_GK + h / kHeadGroup * p.K;
      if (h % kHeadGroup == 0) std::copy(at, at + keys.count, share);
      else
        for (int64_t i = 0; i < keys.count; ++i) share[i] += at[i];
    }
    gemm_serial({.a = scores,
                 .b = p.kv,
                 .c = out,
                 .M = heads,
                 .N = p.R,
                 .K = keys.count,
                 .a_row = stride,
                 .a_col = 1,
                 .b_row = p.C,
                 .b_col = 1,
                 .c_row = p.R,
                 .b_type = p.type,
                 .b_rows = keys.row});
  }
  for (int64_t i = 0; i < heads * p.R; i += kLanes)
    write(p.out, p.type, (row * p.H + first) * p.R + i, heads * p.R - i, read(out, Storage::f32, i, heads * p.R - i));
}

void sparse_mla_target(const SparseMlaParams& p, int64_t row, const float* shares_GK) {
  int64_t groups = (p.H + kHeadGroup - 1) / kHeadGroup, i = 0;
  for (int64_t place = 0; place < p.K; ++place) {
    float total = 0;
    if (p.selected[row * p.K + place] >= 0) {
      for (int64_t g = 0; g < groups; ++g) total += shares_GK[g * p.K + i];
      ++i;
    }
    p.target[row * p.K + place] = total / float(p.H);
  }
}

// With P = exp(S - lse), dP = dO V^T, dS = P * (dP - rowsum(O * dO)) * scale: dq = dS K; of the keys, dV = P^T dO, dK = dS^T q.
void sparse_mla_backward_row(const SparseMlaParams& p, int64_t row, float* coefficients, int64_t stride, float* lines) {
  Keys keys = keys_of(p, row);
  float* dq = p.dq + row * p.H * p.C;
  std::fill(dq, dq + p.H * p.C, 0.0f);
  if (keys.count == 0) return;
  const void* q = element(p.q, p.type, row * p.H * p.C);
  const void* dout = element(p.dout, p.type, row * p.H * p.R);
  float *probability = coefficients, *gradient = probability + p.H * stride;
  int64_t whole = padded(keys.count);
  score(p, row, 0, p.H, keys, stride, probability);
  dot_keys(p, dout, p.R, p.H, keys, stride, gradient);
  for (int64_t h = 0; h < p.H; ++h) {
    int64_t at = (row * p.H + h) * p.R;
    Vec dot{};
    for (int64_t d = 0; d < p.R; d += kLanes)
      dot = fma(read(p.out, p.type, at + d, p.R - d), read(p.dout, p.type, at + d, p.R - d), dot);
    float delta = sum(dot), lse = p.lse[row * p.H + h];
    for (int64_t i = 0; i < whole; i += kLanes) {
      float* prob = probability + h * stride + i;
      float* grad = gradient + h * stride + i;
      Vec e = exp(load(prob) - lse);
      store(prob, e);
      store(grad, e * (load(grad) - delta) * p.scale);
    }
  }
  gemm_serial({.a = gradient,
               .b = p.kv,
               .c = dq,
               .M = p.H,
               .N = p.C,
               .K = keys.count,
               .a_row = stride,
               .a_col = 1,
               .b_row = p.C,
               .b_col = 1,
               .c_row = p.C,
               .b_type = p.type,
               .b_rows = keys.row});
  for (int64_t h = 0; h < p.H; ++h) {
    float *of_dout = lines + h * p.C, *of_q = of_dout + p.H * p.C;
    for (int64_t d = 0; d < p.R; d += kLanes) write(of_dout, Storage::f32, d, p.R - d, read(dout, p.type, h * p.R + d, p.R - d));
    for (int64_t d = 0; d < p.C; d += kLanes) write(of_q, Storage::f32, d, p.C - d, read(q, p.type, h * p.C + d, p.C - d));
  }
}

}  // namespace fulgur::FULGUR_ISA
