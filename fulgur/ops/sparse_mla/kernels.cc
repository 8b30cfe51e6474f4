#include "fulgur/ops/sparse_mla/kernels.h"

#include "fulgur/ops/linear/gathered_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

constexpr int64_t kStretch = 256;      // keys of fp8 that are unpacked at once
constexpr int64_t kLatentGroup = 128;  // latents that share a scale

// The rows of one row's selected keys. Products read them where they lie.
struct Keys {
  int64_t count;
  const int32_t* row;
};

// Columns of them as products read them: rows `row` of `at`, `stride` numbers apart.
struct Columns {
  const void* at;
  int64_t stride;
  const int32_t* row;
};

// Columns [first, last) of keys of fp8, to the type of q, which holds them exactly. The bytes of a row: latents, scales, rope.
Columns unpack_keys(const SparseMlaParams& p, const Keys& keys, int64_t first, int64_t last) {
  static thread_local std::vector<float> room;
  static thread_local std::vector<int32_t> numbers;
  int64_t width = last - first, scales = (p.R + kLatentGroup - 1) / kLatentGroup, bytes = p.R + 4 * scales + 2 * (p.C - p.R);
  room.resize(std::max<size_t>(room.size(), keys.count * width));
  for (int64_t i = int64_t(numbers.size()); i < keys.count; ++i) numbers.push_back(int32_t(i));
  for (int64_t i = 0; i < keys.count; ++i) {
    const auto* key = static_cast<const uint8_t*>(p.kv) + keys.row[i] * bytes;
    if (i + 4 < keys.count) __builtin_prefetch(static_cast<const uint8_t*>(p.kv) + keys.row[i + 4] * bytes + first);
    auto put = [&](int64_t c, int64_t count, Vec value) { write(room.data(), p.type, i * width + c - first, count, value); };
    int64_t c = first;
    for (int64_t latents = std::min(last, p.R); c < latents;) {
      float scale;
      std::memcpy(&scale, key + p.R + c / kLatentGroup * 4, 4);
      int64_t end = std::min(latents, (c / kLatentGroup + 1) * kLatentGroup);
      for (; c < end; c += kLanes) {
        uint8_t part[kLanes] = {};
        const uint8_t* at = end - c >= kLanes ? key + c : std::copy_n(key + c, end - c, part) - (end - c);
        put(c, end - c, small_e4m3(at) * 0x1p120f * scale);
      }
      c = end;
    }
    const auto* rope = reinterpret_cast<const uint16_t*>(key + p.R + 4 * scales);
    for (; c < last; c += kLanes) put(c, last - c, read(rope, Storage::bf16, c - p.R, last - c));
  }
  return {room.data(), width, numbers.data()};
}

Columns columns_of(const SparseMlaParams& p, const Keys& keys, int64_t first, int64_t last) {
  return p.fp8 ? unpack_keys(p, keys, first, last) : Columns{element(p.kv, p.type, first), p.kv_row, keys.row};
}

Keys keys_of(const SparseMlaParams& p, int64_t row) {
  const int32_t* keys = p.selected + row * p.K;
  auto last = std::partition_point(keys, keys + p.K, [](int32_t key) { return key >= 0; });
  return {last - keys, p.rows + row * p.K};
}

int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// dots[h][i] = rows[h] . key_i[first:first + length] of heads whose rows of `length` follow one another.
void dot_keys(const SparseMlaParams& p, const void* rows, int64_t first, int64_t length, int64_t heads, const Keys& keys,
              int64_t stride, float* dots) {
  Columns columns = columns_of(p, keys, first, first + length);
  dot_gathered({.a = rows,
                .b = columns.at,
                .c = dots,
                .M = heads,
                .N = keys.count,
                .K = length,
                .a_row = length,
                .a_col = 1,
                .b_row = 1,
                .b_col = columns.stride,
                .c_row = stride,
                .a_type = p.type,
                .b_type = p.type,
                .b_columns = columns.row},
               p.H);
}

// scores[h][i] = scale * q_h . key_i of all heads.
void score(const SparseMlaParams& p, int64_t row, const Keys& keys, int64_t stride, float* scores) {
  dot_keys(p, element(p.q, p.type, row * p.all_heads * p.Cq), p.C - p.Cq, p.Cq, p.H, keys, stride, scores);
  for (int64_t h = 0; h < p.H; ++h)
    for (int64_t i = 0; i < keys.count; ++i) scores[h * stride + i] *= p.scale;
}

// Scores of a head become probabilities; returns their log-sum-exp.
float softmax(float* scores, int64_t count) {
  int64_t whole = padded(count);
  std::fill(scores + count, scores + whole, -INFINITY);
  Vec largest = splat(-INFINITY), total{};
  for (int64_t i = 0; i < whole; i += kLanes) largest = max(load(scores + i), largest);
  float top = max_lane(largest);
  for (int64_t i = 0; i < whole; i += kLanes) {
    Vec e = exp(load(scores + i) - top);
    store(scores + i, e);
    total += e;
  }
  float all = sum(total), inverse = 1 / all;
  for (int64_t i = 0; i < whole; i += kLanes) store(scores + i, load(scores + i) * inverse);
  return top + std::log(all);
}

}  // namespace

void sparse_mla_scores(const SparseMlaParams& p, int64_t row, int64_t first, int64_t last, float* scores) {
  Keys keys = keys_of(p, row);
  last = std::min(last, keys.count);
  int64_t step = p.fp8 ? kStretch : p.K;
  for (; first < last; first += step)
    score(p, row, {std::min(step, last - first), keys.row + first}, padded_keys(p.K), scores + first);
}

void sparse_mla_softmax(const SparseMlaParams& p, int64_t row, int64_t head, float* scores) {
  int64_t count = keys_of(p, row).count;
  p.lse[row * p.all_heads + head] = count > 0 ? softmax(scores + head * padded_keys(p.K), count) : INFINITY;
}

void sparse_mla_values(const SparseMlaParams& p, int64_t row, int64_t first, int64_t last, const float* scores) {
  static thread_local std::vector<float> buffer;
  Keys keys = keys_of(p, row);
  int64_t size = last - first;
  Columns columns = columns_of(p, keys, first, last);
  buffer.resize(std::max<size_t>(buffer.size(), p.H * size));
  gemm_serial({.a = scores,
               .b = columns.at,
               .c = buffer.data(),
               .M = p.H,
               .N = size,
               .K = keys.count,
               .a_row = padded_keys(p.K),
               .a_col = 1,
               .b_row = columns.stride,
               .b_col = 1,
               .c_row = size,
               .b_type = p.type,
               .b_rows = columns.row});
  for (int64_t h = 0; h < p.H; ++h)
    for (int64_t i = 0; i < size; i += kLanes)
      write(p.out, p.type, (row * p.all_heads + h) * p.R + first + i, size - i,
            read(buffer.data(), Storage::f32, h * size + i, size - i));
}

// The mean of all heads' probabilities, heads added in groups of kHeadGroup.
void sparse_mla_target(const SparseMlaParams& p, int64_t row, const float* scores) {
  int64_t count = keys_of(p, row).count, stride = padded_keys(p.K);
  float* target = p.target + row * p.K;
  std::fill(target, target + p.K, 0.0f);
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec total{};
    for (int64_t h = 0; h < p.H; h += kHeadGroup) {
      Vec share = read(scores, Storage::f32, h * stride + i, count - i);
      for (int64_t head = h + 1; head < std::min(p.H, h + kHeadGroup); ++head)
        share += read(scores, Storage::f32, head * stride + i, count - i);
      total += share;
    }
    write(target, Storage::f32, i, count - i, total / float(p.H));
  }
}

void sparse_mla_row(const SparseMlaParams& p, int64_t row) {
  static thread_local std::vector<float> scores;
  scores.resize(std::max<size_t>(scores.size(), p.H * padded_keys(p.K)));
  sparse_mla_scores(p, row, 0, p.K, scores.data());
  for (int64_t h = 0; h < p.H; ++h) sparse_mla_softmax(p, row, h, scores.data());
  int64_t step = p.fp8 ? kLatentGroup : p.R;
  for (int64_t first = 0; first < p.R; first += step)
    sparse_mla_values(p, row, first, std::min(p.R, first + step), scores.data());
  sparse_mla_target(p, row, scores.data());
}

// With P = exp(S - lse), dP = dO V^T, dS = P * (dP - rowsum(O * dO)) * scale: dq = dS K; of the keys, dV = P^T dO, dK = dS^T q.
void sparse_mla_backward_row(const SparseMlaParams& p, int64_t row, float* coefficients, int64_t stride, float* lines) {
  Keys keys = keys_of(p, row);
  int64_t apart = p.C - p.Cq;  // values that are no part of what is scored
  float* dq = p.dq + row * p.all_heads * p.Cq;
  std::fill(dq, dq + p.H * p.Cq, 0.0f);
  if (keys.count == 0) return;
  const void* q = element(p.q, p.type, row * p.all_heads * p.Cq);
  const void* dout = element(p.dout, p.type, row * p.all_heads * p.R);
  float *probability = coefficients, *gradient = probability + p.H * stride;
  int64_t whole = padded(keys.count);
  score(p, row, keys, stride, probability);
  dot_keys(p, dout, 0, p.R, p.H, keys, stride, gradient);
  for (int64_t h = 0; h < p.H; ++h) {
    int64_t at = (row * p.all_heads + h) * p.R;
    Vec dot{};
    for (int64_t d = 0; d < p.R; d += kLanes)
      dot = fma(read(p.out, p.type, at + d, p.R - d), read(p.dout, p.type, at + d, p.R - d), dot);
    float delta = sum(dot), lse = p.lse[row * p.all_heads + h];
    for (int64_t i = 0; i < whole; i += kLanes) {
      float* prob = probability + h * stride + i;
      float* grad = gradient + h * stride + i;
      Vec e = exp(load(prob) - lse);
      store(prob, e);
      store(grad, e * (load(grad) - delta) * p.scale);
    }
  }
  gemm_serial({.a = gradient,
               .b = element(p.kv, p.type, apart),
               .c = dq,
               .M = p.H,
               .N = p.Cq,
               .K = keys.count,
               .a_row = stride,
               .a_col = 1,
               .b_row = p.kv_row,
               .b_col = 1,
               .c_row = p.Cq,
               .b_type = p.type,
               .b_rows = keys.row});
  for (int64_t h = 0; h < p.H; ++h) {
    float *of_dout = lines + h * p.C, *of_q = of_dout + p.H * p.C;
    for (int64_t d = 0; d < p.R; d += kLanes) write(of_dout, Storage::f32, d, p.R - d, read(dout, p.type, h * p.R + d, p.R - d));
    std::fill(of_q, of_q + apart, 0.0f);
    for (int64_t d = 0; d < p.Cq; d += kLanes)
      write(of_q + apart, Storage::f32, d, p.Cq - d, read(q, p.type, h * p.Cq + d, p.Cq - d));
  }
}

}  // namespace fulgur::FULGUR_ISA
