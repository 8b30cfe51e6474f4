// Dots of few rows with gathered keys, for kernels.cc files. Turning a key's elements to lie beside those of its neighbours costs
// as much as eight rows gain by it; here a vector runs along a key, and its lanes are added at the end.
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

// Rows of A by gathered columns of B: by these dots where the model has few heads, else as any product. Which of them may depend
// on nothing else, so that few rows and many have the same bits.
inline void dot_gathered(const GemmParams& p, int64_t heads) {
  auto dots = [&](auto* rows, auto* keys) {
    gathered_dots(rows, p.a_row, p.M, keys, p.b_col, p.b_columns, p.N, p.K, static_cast<float*>(p.c), p.c_row);
  };
  if (heads > kFewRows) gemm_serial(p);
  else if (p.b_type == Storage::f32) dots(static_cast<const float*>(p.a), static_cast<const float*>(p.b));
  else dots(static_cast<const uint16_t*>(p.a), static_cast<const uint16_t*>(p.b));
}

}  // namespace fulgur::FULGUR_ISA
