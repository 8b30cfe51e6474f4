// The indexer's products, for kernels.cc files: q . k, and I = sum_j w_j relu(q_j . k) with or without keeping the dots.
#pragma once

#include "fulgur/ops/indexer/kernels.h"
#include "fulgur/ops/linear/gemm_kernel.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {

// Of one group's keys by all heads' queries; those of other groups are the caller's to leave out.
inline GemmParams dot_products(const IndexerParams& p, int64_t first, int64_t rows, int64_t key, int64_t count,
                               int64_t group = 0) {
  return {.a = element(p.q, p.type, first * p.J * p.D),
          .b = element(p.k, p.type, key * p.key_size() + group * p.D),
          .c = nullptr,
          .M = rows * p.J,
          .N = count,
          .K = p.D,
          .a_row = p.D,
          .a_col = 1,
          .b_row = 1,
          .b_col = p.key_size(),
          .c_row = 0,
          .a_type = p.type,
          .b_type = p.type};
}

// The same as products over all of which each pair of a head and a key of its group comes once: each(product, its first head,
// a row of which is `heads` heads below the one before). With c [rows, J, c_row].
template <class Each>
void for_products(const IndexerParams& p, int64_t first, int64_t rows, int64_t key, int64_t count, float* c, int64_t c_row,
                  const Each& each) {
  if (p.G == 1) {
    GemmParams product = dot_products(p, first, rows, key, count);
    product.c = c, product.c_row = c_row;
    return each(product, 0, 1);
  }
  for (int64_t j = 0; j < p.J; ++j) {
    GemmParams product = dot_products(p, first, rows, key, count, j * p.G / p.J);
    product.a = element(product.a, p.type, j * p.D);
    product.M = rows, product.a_row = p.J * p.D;
    product.c = c + j * c_row, product.c_row = p.J * c_row;
    each(product, j, p.J);
  }
}

// One row: scores[i] = sum_j w_j relu(dots[j][i]), heads in ascending order.
inline void weigh(const float* dots, const float* w, int64_t J, int64_t stride, int64_t count, float* scores) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec total{};
    for (int64_t j = 0; j < J; ++j)
      total = fma(max(read(dots, Storage::f32, j * stride + i, count - i), Vec{}), splat(w[j]), total);
    write(scores, Storage::f32, i, count - i, total);
  }
}

// Where add_heads finds kGemmCols keys, word by word: in a panel [words][kGemmCols],
struct PackedKeys {
  const float* at;
  void read(Vec& k0, Vec& k1) {
    k0 = load(at), k1 = load(at + kLanes);
    at += kGemmCols;
  }
  static void in_order(Vec (&)[2]) {}
};
// or in a page of bf16, where two keys share a lane: those of even numbers come first, then the others.
struct PageKeys {
  const uint16_t* at;
  void read(Vec& k0, Vec& k1) {
    auto bits = reinterpret_cast<VecUint>(load(reinterpret_cast<const float*>(at)));
    k0 = reinterpret_cast<Vec>(bits << 16), k1 = reinterpret_cast<Vec>(bits & 0xffff0000u);
    at += kPageKeys;
  }
  static void in_order(Vec (&total)[2]) { interleave(total, std::make_index_sequence<kLanes>{}); }

 private:
  template <size_t... I>
  static void interleave(Vec (&total)[2], std::index_sequence<I...>) {
    constexpr int kHalf = kLanes / 2;
    Vec low = __builtin_shufflevector(total[0], total[1], (I % 2 * kLanes + I / 2)...);
    total[1] = __builtin_shufflevector(total[0], total[1], (I % 2 * kLanes + kHalf + I / 2)...);
    total[0] = low;
  }
};

// Memory that will be read next: with each word so many bytes further are asked for.
struct Ahead {
  const char* at;
  int64_t step;
};

// `Heads` heads of one row by kGemmCols keys; their dots never leave the registers. `sums` are those of integers
// (sums_of_integers).
template <int Heads, class Math = Singles, class Keys = PackedKeys>
inline void add_heads(const float* q, int64_t words, Keys keys, const float* w, const int32_t* sums, const Ahead& ahead,
                      Vec (&total)[2]) {
  Vec acc[Heads][2] = {};
  const char* next = ahead.at;
  for (int64_t word = 0; word < words; ++word, next += ahead.step) {
    __builtin_prefetch(next, 0, 2);
    Vec k0, k1;
    keys.read(k0, k1);
    keep(k0), keep(k1);
#pragma GCC unroll 16
    for (int j = 0; j < Heads; ++j) {
      Vec value = splat(q[j * words + word]);
      acc[j][0] = Math::multiply_add(value, k0, acc[j][0]);
      acc[j][1] = Math::multiply_add(value, k1, acc[j][1]);
    }
  }
#pragma GCC unroll 16
  for (int j = 0; j < Heads; ++j) {
    if constexpr (std::is_same_v<Math, IntQuads>)
      acc[j][0] = sums_of_integers(acc[j][0], sums[j]), acc[j][1] = sums_of_integers(acc[j][1], sums[j]);
    total[0] = fma(max(acc[j][0], Vec{}), splat(w[j]), total[0]);
    total[1] = fma(max(acc[j][1], Vec{}), splat(w[j]), total[1]);
  }
}

// The same of `Rows` rows with few heads each, whose chains of FMA would be too few one row at a time. Queries, weights and sums
// of a row lie `heads` heads behind those of the row before.
template <int Rows, int Heads, class Math, class Keys>
inline void add_heads_of_rows(const float* q, int64_t words, int64_t heads, Keys keys, const float* w, const int32_t* sums,
                              Vec (&total)[Rows][2]) {
  Vec acc[Rows][Heads][2] = {};
  for (int64_t word = 0; word < words; ++word) {
    Vec k0, k1;
    keys.read(k0, k1);
    keep(k0), keep(k1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
      for (int j = 0; j < Heads; ++j) {
        Vec value = splat(q[(r * heads + j) * words + word]);
        acc[r][j][0] = Math::multiply_add(value, k0, acc[r][j][0]);
        acc[r][j][1] = Math::multiply_add(value, k1, acc[r][j][1]);
      }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 16
    for (int j = 0; j < Heads; ++j)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        Vec dots = acc[r][j][v];
        if constexpr (std::is_same_v<Math, IntQuads>) dots = sums_of_integers(dots, sums[r * heads + j]);
        total[r][v] = fma(max(dots, Vec{}), splat(w[r * heads + j]), total[r][v]);
      }
}

}  // namespace fulgur::FULGUR_ISA
