// The GEMM micro-kernel, for kernels.cc files: gemm_serial(params) inside a task of parallel_for. See gemm.h.
#pragma once

#include <algorithm>
#include <vector>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {

constexpr int kGemmK = 256;               // length of one FMA chain
constexpr int kGemmRows = kLanes == 16 ? 12 : 4;
constexpr int kGemmCols = 2 * kLanes;     // two vectors of C for each row

// acc[r][j] = sum_k a[k][r] * b[k][j], then C = acc or C += acc. `a` is packed [K][Rows], `b` packed [K][kGemmCols].
template <int Rows>
inline void micro_kernel(const float* a, const float* b, int64_t K, float* c, int64_t c_row, int rows, int cols, bool add) {
  Vec acc[Rows][2] = {};
  for (int64_t k = 0; k < K; ++k, a += Rows, b += kGemmCols) {
    Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Vec value = splat(a[r]);
      acc[r][0] = fma(value, b0, acc[r][0]);
      acc[r][1] = fma(value, b1, acc[r][1]);
    }
  }
  if (cols == kGemmCols) {
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      if (r >= rows) break;
      float* at = c + r * c_row;
      store(at, add ? load(at) + acc[r][0] : acc[r][0]);
      store(at + kLanes, add ? load(at + kLanes) + acc[r][1] : acc[r][1]);
    }
    return;
  }
  float spill[Rows][kGemmCols];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) store(spill[r], acc[r][0]), store(spill[r] + kLanes, acc[r][1]);
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < cols; ++j) c[r * c_row + j] = add ? c[r * c_row + j] + spill[r][j] : spill[r][j];
}

template <class T>
inline float widen(T value, bool) {
  if constexpr (std::is_same_v<T, uint16_t>) return from_bf16(value);
  else return value;
}
template <>
inline float widen<float>(float value, bool round) { return round ? from_bf16(to_bf16(value)) : value; }

// Packs `count` lines (rows of A or columns of B) of length K into panels [panel][K][width], zero beyond the end.
template <class T, int Width>
void pack(const T* from, int64_t line_stride, int64_t k_stride, int64_t count, int64_t K, bool round, float* to) {
  for (int64_t first = 0; first < count; first += Width, to += Width * K) {
    int lines = int(std::min<int64_t>(Width, count - first));
    const T* at = from + first * line_stride;
    if (lines < Width) std::fill(to, to + Width * K, 0.0f);
    if (line_stride == 1) {
      for (int64_t k = 0; k < K; ++k)
        for (int i = 0; i < lines; ++i) to[k * Width + i] = widen(at[k * k_stride + i], round);
    } else {
      // Eight k at a time keep the strided side within one cache line for each line.
      for (int64_t k0 = 0; k0 < K; k0 += 8) {
        int64_t k1 = std::min<int64_t>(K, k0 + 8);
        for (int i = 0; i < lines; ++i)
          for (int64_t k = k0; k < k1; ++k) to[k * Width + i] = widen(at[i * line_stride + k * k_stride], round);
      }
    }
  }
}

template <int Width>
void pack_any(const void* from, Storage type, int64_t offset, int64_t line_stride, int64_t k_stride, int64_t count,
              int64_t K, bool round, float* to) {
  if (type == Storage::f32)
    pack<float, Width>(static_cast<const float*>(from) + offset, line_stride, k_stride, count, K, round, to);
  else
    pack<uint16_t, Width>(static_cast<const uint16_t*>(from) + offset, line_stride, k_stride, count, K, false, to);
}

template <int Rows>
void multiply_panels(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> a_pack, b_pack;
  int64_t a_panels = (m1 - m0 + Rows - 1) / Rows, b_panels = (n1 - n0 + kGemmCols - 1) / kGemmCols;
  a_pack.resize(std::max<size_t>(a_pack.size(), a_panels * Rows * kGemmK));
  b_pack.resize(std::max<size_t>(b_pack.size(), b_panels * kGemmCols * kGemmK));
  for (int64_t k0 = 0; k0 < p.K; k0 += kGemmK) {
    int64_t K = std::min<int64_t>(kGemmK, p.K - k0);
    pack_any<Rows>(p.a, p.a_type, m0 * p.a_row + k0 * p.a_col, p.a_row, p.a_col, m1 - m0, K, false, a_pack.data());
    pack_any<kGemmCols>(p.b, p.b_type, k0 * p.b_row + n0 * p.b_col, p.b_col, p.b_row, n1 - n0, K, p.round_b_to_bf16,
                        b_pack.data());
    bool add = k0 > 0 || p.accumulate;
    for (int64_t j = 0; j < b_panels; ++j) {
      int cols = int(std::min<int64_t>(kGemmCols, n1 - n0 - j * kGemmCols));
      for (int64_t i = 0; i < a_panels; ++i) {
        int rows = int(std::min<int64_t>(Rows, m1 - m0 - i * Rows));
        micro_kernel<Rows>(a_pack.data() + i * Rows * K, b_pack.data() + j * kGemmCols * K, K,
                           c + i * Rows * c_row + j * kGemmCols, c_row, rows, cols, add);
      }
    }
  }
}

inline void gemm_region(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
  if (m0 >= m1 || n0 >= n1) return;
  static thread_local std::vector<float> rounded;
  float* c = static_cast<float*>(p.c) + m0 * p.c_row + n0;
  int64_t c_row = p.c_row, rows = m1 - m0, cols = n1 - n0;
  if (p.c_type == Storage::bf16) {
    rounded.resize(std::max<size_t>(rounded.size(), rows * cols));
    c = rounded.data(), c_row = cols;
  }
  if (p.K == 0 && !p.accumulate)
    for (int64_t r = 0; r < rows; ++r) std::fill(c + r * c_row, c + r * c_row + cols, 0.0f);
  if (rows == 1) multiply_panels<1>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 4) multiply_panels<4>(p, m0, m1, n0, n1, c, c_row);
  else multiply_panels<kGemmRows>(p, m0, m1, n0, n1, c, c_row);
  if (p.c_type == Storage::bf16)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < cols; ++j)
        static_cast<uint16_t*>(p.c)[(m0 + r) * p.c_row + n0 + j] = to_bf16(c[r * cols + j]);
}

// The whole product on the calling thread.
inline void gemm_serial(const GemmParams& p) { gemm_region(p, 0, p.M, 0, p.N); }

}  // namespace fulgur::FULGUR_ISA
