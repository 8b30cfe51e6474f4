// Dots of rows with gathered keys, for kernels.cc files. Turning a key's numbers to lie beside those of its neighbours costs as
// much as eight rows gain by it. Of up to eight rows a vector runs along a key, and its lanes are added at the end; of a few more
// a vector runs along the rows, and a key's numbers are spread over it where they lie.
#pragma once

#include "fulgur/ops/linear/gathered.h"
#include "fulgur/ops/linear/gemm_kernel.h"

namespace fulgur::FULGUR_ISA {

// Lane i becomes the sum of lines[i].
template <int Bit = 1>
inline Vec sum_of_each(Vec (&lines)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; i += 2 * Bit) {
    exchange<Bit>(lines[i], lines[i + Bit], std::make_index_sequence<kLanes>{});
    lines[i] += lines[i + Bit];
  }
  if constexpr (2 * Bit < kLanes) return sum_of_each<2 * Bit>(lines);
  else return lines[0];
}

template <class T>
inline Vec load_part(const T* at, int64_t count) {
  T part[kLanes] = {};
  std::copy(at, at + count, part);
  return load_as_f32(part, false);
}

// out[m][i] = row m . key i, both of `length`. Each is a chain of FMAs a lane, lanes added in a tree: the same alone or among
// others. out_stride is a multiple of kLanes; what lies behind the last key up to the next multiple is overwritten.
template <class T>
void gathered_dots(const T* rows, int64_t row_stride, int64_t M, const T* keys, int64_t key_stride, const int32_t* key,
                   int64_t count, int64_t length, float* out, int64_t out_stride) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const T* at[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) at[lane] = keys + key[std::min(i + lane, count - 1)] * key_stride;
    for (int64_t m = 0; m < M; ++m) {
      const T* row = rows + m * row_stride;
      Vec sums[kLanes];
#pragma GCC unroll 16
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] = Vec{};  // in registers; `= {}` clears memory instead
      int64_t d = 0;
      for (; d + kLanes <= length; d += kLanes) {
        Vec x = load_as_f32(row + d, false);
#pragma GCC unroll 16
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] = fma(x, load_as_f32(at[lane] + d, false), sums[lane]);
      }
      if (d < length) {
        Vec x = load_part(row + d, length - d);
        for (int lane = 0; lane < kLanes; ++lane) sums[lane] = fma(x, load_part(at[lane] + d, length - d), sums[lane]);
      }
      store(out + m * out_stride + i, sum_of_each(sums));
    }
  }
}

constexpr int64_t kWideKey = kGemmK + kLanes;  // from one to the next of the keys a panel of rows is multiplied by

// to[key][row] (+)= `length` numbers from k0 on of Keys keys by the rows of a panel [length][kGemmCols]; those of `next`, which
// will be read then, are asked for.
template <int Keys, int Vecs, class T>
inline void dot_spread(const float* keys, const T* const (&next)[Keys], int64_t k0, const float* panel, int64_t length,
                       float* to) {
  Vec acc[Keys][Vecs];
#pragma GCC unroll 48
  for (int i = 0; i < Keys * Vecs; ++i) acc[i / Vecs][i % Vecs] = Vec{};
  for (int64_t k = 0; k < length; ++k, ++keys, panel += kGemmCols) {
    if (k * sizeof(T) % 64 == 0)
#pragma GCC unroll 24
      for (int i = 0; i < Keys; ++i) __builtin_prefetch(next[i] + k0 + k, 0, 2);
    Vec row0 = load(panel), row1 = Vecs > 1 ? load(panel + kLanes) : row0;
#pragma GCC unroll 24
    for (int i = 0; i < Keys; ++i) {
      Vec value = splat(keys[i * kWideKey]);
      acc[i][0] = fma(value, row0, acc[i][0]);
      if constexpr (Vecs > 1) acc[i][1] = fma(value, row1, acc[i][1]);
    }
  }
#pragma GCC unroll 48
  for (int i = 0; i < Keys * Vecs; ++i) {
    float* place = to + i / Vecs * kGemmCols + i % Vecs * kLanes;
    store(place, k0 > 0 ? load(place) + acc[i / Vecs][i % Vecs] : acc[i / Vecs][i % Vecs]);
  }
}

// As gathered_dots, with the bits of a product that packs.
template <int Vecs, class T>
void spread_dots(const T* rows, int64_t row_stride, int64_t M, const T* keys, int64_t key_stride, const int32_t* key,
                 int64_t count, int64_t length, float* out, int64_t out_stride) {
  constexpr int kKeys = kGemmRows;
  static thread_local std::vector<float> panels, wide, dots;
  panels.resize(std::max<size_t>(panels.size(), length * kGemmCols));
  wide.resize(std::max<size_t>(wide.size(), kKeys * kWideKey));
  dots.resize(std::max<size_t>(dots.size(), (count + kKeys + kLanes) * kGemmCols));
  auto find = [&](int64_t first, const T*(&at)[kKeys]) {
    for (int i = 0; i < kKeys; ++i) at[i] = keys + key[std::min(first + i, count - 1)] * key_stride;
  };
  for (int64_t m = 0; m < M; m += Vecs * kLanes) {
    GemmParams turned{};
    turned.b = rows + m * row_stride, turned.b_row = 1, turned.b_col = row_stride;
    turned.b_type = std::is_same_v<T, float> ? Storage::f32 : Storage::bf16;
    pack_b<Singles>(turned, 0, length, 0, std::min<int64_t>(M - m, Vecs * kLanes), panels.data());
    const T *at[kKeys], *next[kKeys];
    find(0, next);
    for (int64_t i = 0; i < count; i += kKeys) {
      std::copy_n(next, kKeys, at);
      find(i + kKeys, next);
      for (int64_t k0 = 0; k0 < length; k0 += kGemmK) {
        int64_t K = std::min<int64_t>(kGemmK, length - k0);
        for (int j = 0; j < kKeys; ++j) widen_lines(at[j] + k0, 0, 1, 1, K, wide.data() + j * kWideKey, 0);
        dot_spread<kKeys, Vecs>(wide.data(), next, k0, panels.data() + k0 * kGemmCols, K, dots.data() + i * kGemmCols);
      }
    }
    for (int64_t i = 0; i < count; i += kLanes)
      for (int v = 0; v < Vecs; ++v) {
        Vec square[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) square[lane] = load(dots.data() + (i + lane) * kGemmCols + v * kLanes);
        transpose(square);
        for (int64_t lane = 0; lane < std::min<int64_t>(kLanes, M - m - v * kLanes); ++lane)
          store(out + (m + v * kLanes + lane) * out_stride + i, square[lane]);
      }
  }
}

// Rows of A by gathered columns of B: by these dots where the model has few heads, else as any product. Which of them may depend
// on nothing else, so that few rows and many have the same bits.
inline void dot_gathered(const GemmParams& p, int64_t heads) {
  auto dots = [&]<class T>(const T* rows, const T* keys) {
    auto* some = heads <= kFewRows ? gathered_dots<T> : heads <= kLanes ? spread_dots<1, T> : spread_dots<2, T>;
    some(rows, p.a_row, p.M, keys, p.b_col, p.b_columns, p.N, p.K, static_cast<float*>(p.c), p.c_row);
  };
  bool in_pairs = kPairs && p.b_type == Storage::bf16;
  if (heads > (in_pairs ? kFewRows : kSomeRows)) gemm_serial(p);
  else if (p.b_type == Storage::f32) dots(static_cast<const float*>(p.a), static_cast<const float*>(p.b));
  else dots(static_cast<const uint16_t*>(p.a), static_cast<const uint16_t*>(p.b));
}

}  // namespace fulgur::FULGUR_ISA
