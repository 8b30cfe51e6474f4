#include "fulgur/ops/linear/gathered.h"
#include "fulgur/ops/linear/gemm_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

// Columns [begin, end) of to[key_i] += sum_t coefficient[t][i] * line[t], key by key, all factors in registers.
template <int Terms>
void add_terms(const KeyGradients& g, const float* coefficients, const float* lines, int64_t begin, int64_t end,
               const int32_t* keys, int64_t count) {
  int64_t stride = g.stride(), length = g.length;
  for (int64_t i = 0; i < count; ++i) {
    float* to = g.to + keys[i] * length;
    Vec factor[Terms];
#pragma GCC unroll 8
    for (int t = 0; t < Terms; ++t) factor[t] = splat(coefficients[t * stride + i]);
    int64_t d = begin;
    for (; d + kLanes <= end; d += kLanes) {
      Vec sum = factor[0] * load(lines + d);
#pragma GCC unroll 8
      for (int t = 1; t < Terms; ++t) sum = fma(factor[t], load(lines + t * length + d), sum);
      store(to + d, load(to + d) + sum);
    }
    for (; d < end; ++d) {
      float sum = factor[0][0] * lines[d];
      for (int t = 1; t < Terms; ++t) sum = fma(factor[t][0], lines[t * length + d], sum);
      to[d] += sum;
    }
  }
}

constexpr decltype(&add_terms<1>) kAddTerms[] = {add_terms<1>, add_terms<2>, add_terms<3>, add_terms<4>,
                                                 add_terms<5>, add_terms<6>, add_terms<7>, add_terms<8>};

void add_few(const KeyGradients& g, const float* coefficients, const float* lines, int64_t term, int64_t terms, int64_t begin,
             int64_t end, const int32_t* keys, int64_t count) {
  for (int64_t t = term; t < term + terms && begin < end; t += 8)
    kAddTerms[std::min<int64_t>(8, term + terms - t) - 1](g, coefficients + t * g.stride(), lines + t * g.length, begin, end,
                                                          keys, count);
}

// Many: a matrix product for 128 keys at a time.
void add_many(const KeyGradients& g, const float* coefficients, const float* lines, int64_t term, int64_t terms, int64_t begin,
              int64_t end, const int32_t* keys, int64_t count) {
  constexpr int64_t kKeys = 128;
  static thread_local std::vector<float> sums;
  int64_t width = end - begin;
  if (width <= 0) return;
  sums.resize(std::max<size_t>(sums.size(), kKeys * width));
  for (int64_t i = 0; i < count; i += kKeys) {
    int64_t some = std::min(kKeys, count - i);
    gemm_serial({.a = coefficients + term * g.stride() + i,
                 .b = lines + term * g.length + begin,
                 .c = sums.data(),
                 .M = some,
                 .N = width,
                 .K = terms,
                 .a_row = 1,
                 .a_col = g.stride(),
                 .b_row = g.length,
                 .b_col = 1,
                 .c_row = width});
    for (int64_t k = 0; k < some; ++k) {
      float* to = g.to + keys[i + k] * g.length + begin;
      for (int64_t d = 0; d < width; ++d) to[d] += sums[k * width + d];
    }
  }
}

// How many of a row's keys are below `key`; -1, which is padding, is above all.
int64_t keys_below(const int32_t* keys, int64_t count, int64_t key) {
  int64_t base = 0;
  for (int64_t left = count; left > 0;) {
    int64_t half = (left + 1) / 2;
    base = uint32_t(keys[base + half - 1]) < uint32_t(key) ? base + half : base;
    left -= half;
  }
  return base;
}

}  // namespace

void integer_row(const void* x, Storage type, int64_t count, int8_t* to, IntegerGroup* groups) {
  for (int64_t k = 0; k < count; k += kIntegerGroup, ++groups) {
    int64_t some = std::min(kIntegerGroup, count - k);
    Vec top{}, nothing{};  // nothing: 0, or NaN
    for_vectors(some, [&](int64_t i, int64_t n) {
      Vec value = read(x, type, k + i, n);
      top = max(top, max(value, -value)), nothing += value * 0.0f;
    });
    float most = max_lane(top);
    groups->scale = most / kMostOfARow + sum(nothing);
    std::fill_n(groups->sums, 4, 0);
    float inverse = most > 1e-30f && most < INFINITY ? kMostOfARow / most : 0;
    for_vectors(some, [&](int64_t i, int64_t n) {
      Vec value = read(x, type, k + i, n) * inverse;
      value = (value + 12582912.0f) - 12582912.0f;  // to the nearest whole number: 1.5 * 2^23
      auto whole = __builtin_convertvector(value, VecInt);
      for (int64_t lane = 0; lane < n; ++lane) {
        to[k + i + lane] = int8_t(whole[lane]);
        groups->sums[(i + lane) / 32] += whole[lane];
      }
    });
  }
}

void gemm_tile(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) { gemm_region(p, m0, m1, n0, n1); }

void add_to_key_range(const KeyGradients& g, int64_t row, int64_t slot, int64_t slots, int64_t first, int64_t last) {
  auto add = g.terms <= 2 * kFewRows ? add_few : add_many;
  int64_t split = g.split > 0 ? g.split : g.length;
  for (; slots > 0; --slots, ++slot, ++row) {
    const int32_t* keys = g.selected + row * g.K;
    if (uint32_t(keys[0]) >= uint32_t(last)) continue;
    int64_t begin = keys_below(keys, g.K, first), count = keys_below(keys, g.K, last) - begin;
    if (count <= 0) continue;
    const float *coefficients = g.coefficients(slot) + begin, *lines = g.lines(slot);
    add(g, coefficients, lines, 0, g.terms, 0, split, keys + begin, count);
    add(g, coefficients, lines, g.terms / 2, g.terms / 2, split, g.length, keys + begin, count);
  }
}

}  // namespace fulgur::FULGUR_ISA
