#include "fulgur/ops/sparse_mla/kernels.h"

#include "fulgur/ops/linear/gemm_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

// The selected keys of one row, without padding. Products read them where they lie.
struct Keys {
  int64_t count;
  const int32_t* key;
};

Keys keys_of(const SparseMlaParams& p, int64_t row) {
  static thread_local std::vector<int32_t> buffer;
  buffer.resize(std::max<size_t>(buffer.size(), p.K));
  int64_t count = 0;
  for (int64_t i = 0; i < p.K; ++i)
    if (p.selected[row * p.K + i] >= 0) buffer[count++] = p.selected[row * p.K + i];
  return {count, buffer.data()};
}

// scores[h][i] = scale * q_h . key_i of heads [first, last), rows of `stride` with -inf behind the keys.
void score(const SparseMlaParams& p, int64_t row, int64_t first, int64_t last, const Keys& keys, int64_t stride, float* scores) {
  const char* q = static_cast<const char*>(p.q) + (row * p.H + first) * p.C * (p.type == Storage::f32 ? 4 : 2);
  gemm_serial({.a = q,
               .b = p.kv,
               .c = scores,
               .M = last - first,
               .N = keys.count,
               .K = p.C,
               .a_row = p.C,
               .a_col = 1,
               .b_row = 1,
               .b_col = p.C,
               .c_row = stride,
               .a_type = p.type,
               .b_type = p.type,
               .b_columns = keys.key});
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
                 .b_rows = keys.key});
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

// With P = exp(S - lse), dP = dO V^T, dS = P * (dP - rowsum(O * dO)) * scale: dq = dS K, dK = dS^T q, dV = P^T dO.
void sparse_mla_backward_row(const SparseMlaParams& p, int64_t row, int64_t slot) {
  static thread_local std::vector<float> buffer;
  Keys keys = keys_of(p, row);
  int64_t stride = padded(keys.count), element = p.type == Storage::f32 ? 4 : 2;
  float* dq = p.dq + row * p.H * p.C;
  std::fill(dq, dq + p.H * p.C, 0.0f);
  if (keys.count == 0) return;
  buffer.resize(std::max<size_t>(buffer.size(), 2 * p.H * (stride + p.C)));
  float* probability = buffer.data();
  float* gradient = probability + p.H * stride;
  const char* q = static_cast<const char*>(p.q) + row * p.H * p.C * element;
  const char* dout = static_cast<const char*>(p.dout) + row * p.H * p.R * element;
  score(p, row, 0, p.H, keys, stride, probability);
  gemm_serial({.a = dout,
               .b = p.kv,
               .c = gradient,
               .M = p.H,
               .N = keys.count,
               .K = p.R,
               .a_row = p.R,
               .a_col = 1,
               .b_row = 1,
               .b_col = p.C,
               .c_row = stride,
               .a_type = p.type,
               .b_type = p.type,
               .b_columns = keys.key});
  for (int64_t h = 0; h < p.H; ++h) {
    int64_t at = (row * p.H + h) * p.R;
    Vec dot{};
    for (int64_t d = 0; d < p.R; d += kLanes)
      dot = fma(read(p.out, p.type, at + d, p.R - d), read(p.dout, p.type, at + d, p.R - d), dot);
    float delta = sum(dot), lse = p.lse[row * p.H + h];
    for (int64_t i = 0; i < stride; i += kLanes) {
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
               .b_rows = keys.key});
  // dK = P^T dO + dS^T q as one product: dO, zero behind the values' size, above q.
  float* joined = gradient + p.H * stride;
  for (int64_t h = 0; h < p.H; ++h)
    for (int64_t d = 0; d < p.C; d += kLanes) {
      Vec value = d < p.R ? read(dout, p.type, h * p.R + d, p.R - d) : Vec{};
      write(joined, Storage::f32, h * p.C + d, p.C - d, value);
      write(joined, Storage::f32, (p.H + h) * p.C + d, p.C - d, read(q, p.type, h * p.C + d, p.C - d));
    }
  gemm_serial({.a = probability,
               .b = joined,
               .c = p.contribution + slot * p.K * p.C,
               .M = keys.count,
               .N = p.C,
               .K = 2 * p.H,
               .a_row = 1,
               .a_col = stride,
               .b_row = p.C,
               .b_col = 1,
               .c_row = p.C});
}

void sparse_mla_scatter(const SparseMlaParams& p, int64_t row0, int64_t rows, int64_t first, int64_t last) {
  for (int64_t slot = 0; slot < rows; ++slot) {
    const float* from = p.contribution + slot * p.K * p.C;
    for (int64_t i = 0; i < p.K; ++i) {
      int64_t key = p.selected[(row0 + slot) * p.K + i];
      if (key < 0) continue;
      float* to = p.dkv + key * p.C;
      for (int64_t d = first; d < last; ++d) to[d] += from[d];
      from += p.C;
    }
  }
}

}  // namespace fulgur::FULGUR_ISA
