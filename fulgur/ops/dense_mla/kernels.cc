#include "fulgur/ops/dense_mla/kernels.h"

#include "fulgur/ops/linear/gemm_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

constexpr int64_t kTile = kPageKeys;  // keys a tile, counted from the rows' first key
static_assert(kTile % kLanes == 0);

// a tile of A * B^T: scores[r][j] = rows of a (stride a_row) dot rows of b (stride b_row).
void rows_dot_rows(const void* a, int64_t a_row, const void* b, int64_t b_row, Storage type, int64_t rows, int64_t keys,
                   int64_t size, float* scores) {
  gemm_serial({.a = a,
               .b = b,
               .c = scores,
               .M = rows,
               .N = keys,
               .K = size,
               .a_row = a_row,
               .a_col = 1,
               .b_row = 1,
               .b_col = b_row,
               .c_row = kTile,
               .a_type = type,
               .b_type = type});
}

struct Block {
  int64_t begin, end, rows;  // keys [begin, end) of the longest row
};

Block block_of(const DenseMlaParams& p, int64_t first, int64_t last) {
  Block block{p.visible[2 * first], p.visible[2 * first], last - first};
  for (int64_t row = first; row < last; ++row) block.end = std::max<int64_t>(block.end, p.visible[2 * row + 1]);
  return block;
}

// The first row of a block that sees the tile at `key`.
int64_t first_seeing(const DenseMlaParams& p, int64_t first, const Block& block, int64_t key) {
  int64_t r = 0;
  while (r < block.rows && p.visible[2 * (first + r) + 1] <= key) ++r;
  return r;
}

// Scaled scores of one tile for rows [from, rows), -inf beyond each row's end and beyond the tile's keys.
void score_tile(const DenseMlaParams& p, int64_t head, int64_t first, const Block& block, int64_t from, int64_t key,
                float* scores) {
  int64_t keys = std::min(kTile, block.end - key), group = head / (p.H / p.G);
  rows_dot_rows(element(p.q, p.type, ((first + from) * p.H + head) * p.E), p.H * p.E,
                element(p.k, p.type, (row_of_key(p.pages, key) * p.G + group) * p.E), p.G * p.E, p.type, block.rows - from, keys,
                p.E, scores + from * kTile);
  for (int64_t r = from; r < block.rows; ++r) {
    int64_t seen = std::clamp<int64_t>(p.visible[2 * (first + r) + 1] - key, 0, kTile);
    float* row = scores + r * kTile;
    for (int64_t j = 0; j < seen; ++j) row[j] *= p.scale;
    std::fill(row + seen, row + kTile, -INFINITY);
  }
}

// One tile of the online softmax of a row: scores become exp(score - new top); returns the factor for what came before.
float softmax_step(float* scores, float& top, float& total) {
  Vec largest = splat(top);
  for (int64_t j = 0; j < kTile; j += kLanes) largest = max(load(scores + j), largest);
  float new_top = max_lane(largest);
  if (new_top == -INFINITY) {  // no key so far
    std::fill(scores, scores + kTile, 0.0f);
    return 1;
  }
  float factor = top == new_top ? 1.0f : exp(top - new_top);
  Vec added{};
  for (int64_t j = 0; j < kTile; j += kLanes) {
    Vec e = exp(load(scores + j) - new_top);
    store(scores + j, e);
    added += e;
  }
  total = total * factor + sum(added);
  top = new_top;
  return factor;
}

}  // namespace

void dense_mla_block(const DenseMlaParams& p, int64_t head, int64_t first, int64_t last) {
  static thread_local std::vector<float> buffer;
  Block block = block_of(p, first, last);
  buffer.assign(kDenseMlaRows * (kTile + p.V), 0.0f);
  float* scores = buffer.data();
  float* sums = scores + kDenseMlaRows * kTile;  // [rows, V]
  float top[kDenseMlaRows], total[kDenseMlaRows] = {};
  std::fill(top, top + kDenseMlaRows, -INFINITY);
  for (int64_t key = block.begin; key < block.end; key += kTile) {
    int64_t keys = std::min(kTile, block.end - key), from = first_seeing(p, first, block, key);
    score_tile(p, head, first, block, from, key, scores);
    for (int64_t r = from; r < block.rows; ++r) {
      float factor = softmax_step(scores + r * kTile, top[r], total[r]);
      if (factor == 1) continue;
      for (int64_t d = 0; d < p.V; ++d) sums[r * p.V + d] *= factor;
    }
    gemm_serial({.a = scores + from * kTile,
                 .b = element(p.v, p.type, (row_of_key(p.pages, key) * p.G + head / (p.H / p.G)) * p.V),
                 .c = sums + from * p.V,
                 .M = block.rows - from,
                 .N = p.V,
                 .K = keys,
                 .a_row = kTile,
                 .a_col = 1,
                 .b_row = p.G * p.V,
                 .b_col = 1,
                 .c_row = p.V,
                 .b_type = p.type,
                 .accumulate = true});
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    int64_t at = (first + r) * p.H + head;
    float inverse = total[r] > 0 ? 1 / total[r] : 0;
    p.lse[at] = total[r] > 0 ? top[r] + std::log(total[r]) : INFINITY;
    for (int64_t d = 0; d < p.V; d += kLanes)
      write(p.out, p.type, at * p.V + d, p.V - d, read(sums, Storage::f32, r * p.V + d, p.V - d) * inverse);
  }
}

// With P = exp(S - lse), dP = dO V^T, delta = rowsum(O * dO), dS = P * (dP - delta) * scale:
// dq += dS k, dk += dS^T q, dv += P^T dO.    Spec E.3, in the MHA form.
void dense_mla_backward_block(const DenseMlaParams& p, int64_t head, int64_t first, int64_t last) {
  static thread_local std::vector<float> buffer;
  Block block = block_of(p, first, last);
  buffer.assign(2 * kDenseMlaRows * kTile, 0.0f);
  float* probability = buffer.data();
  float* gradient = probability + kDenseMlaRows * kTile;
  int64_t qk_row = p.H * p.E, v_row = p.H * p.V, q_at = (first * p.H + head) * p.E, o_at = (first * p.H + head) * p.V;
  float delta[kDenseMlaRows];
  for (int64_t r = 0; r < block.rows; ++r) {
    Vec dot{};
    int64_t at = o_at + r * v_row;
    for (int64_t d = 0; d < p.V; d += kLanes)
      dot = fma(read(p.out, p.type, at + d, p.V - d), read(p.dout, p.type, at + d, p.V - d), dot);
    delta[r] = sum(dot);
  }
  for (int64_t key = block.begin; key < block.end; key += kTile) {
    int64_t keys = std::min(kTile, block.end - key), k_at = (key * p.H + head) * p.E, v_at = (key * p.H + head) * p.V;
    int64_t from = first_seeing(p, first, block, key), some = block.rows - from;
    float *prob = probability + from * kTile, *grad = gradient + from * kTile;
    score_tile(p, head, first, block, from, key, probability);
    rows_dot_rows(element(p.dout, p.type, o_at + from * v_row), v_row, element(p.v, p.type, v_at), v_row, p.type, some, keys, p.V,
                  grad);
    for (int64_t r = from; r < block.rows; ++r) {
      float lse = p.lse[(first + r) * p.H + head];
      for (int64_t j = 0; j < kTile; j += kLanes) {
        float* at = probability + r * kTile + j;
        float* dat = gradient + r * kTile + j;
        Vec e = exp(load(at) - lse);
        store(at, e);
        store(dat, e * (load(dat) - delta[r]) * p.scale);
      }
    }
    GemmParams to_q{.a = grad,
                    .b = element(p.k, p.type, k_at),
                    .c = p.dq + q_at + from * qk_row,
                    .M = some,
                    .N = p.E,
                    .K = keys,
                    .a_row = kTile,
                    .a_col = 1,
                    .b_row = qk_row,
                    .b_col = 1,
                    .c_row = qk_row,
                    .b_type = p.type,
                    .accumulate = true};
    GemmParams to_k{.a = grad,
                    .b = element(p.q, p.type, q_at + from * qk_row),
                    .c = p.dk + k_at,
                    .M = keys,
                    .N = p.E,
                    .K = some,
                    .a_row = 1,
                    .a_col = kTile,
                    .b_row = qk_row,
                    .b_col = 1,
                    .c_row = qk_row,
                    .b_type = p.type,
                    .accumulate = true};
    GemmParams to_v{.a = prob,
                    .b = element(p.dout, p.type, o_at + from * v_row),
                    .c = p.dv + v_at,
                    .M = keys,
                    .N = p.V,
                    .K = some,
                    .a_row = 1,
                    .a_col = kTile,
                    .b_row = v_row,
                    .b_col = 1,
                    .c_row = v_row,
                    .b_type = p.type,
                    .accumulate = true};
    gemm_serial(to_q), gemm_serial(to_k), gemm_serial(to_v);
  }
}

}  // namespace fulgur::FULGUR_ISA
