// The GEMM micro-kernel, for kernels.cc files: gemm_serial(params) inside a task of parallel_for. See gemm.h.
#pragma once

#include <algorithm>
#include <vector>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {

constexpr int kGemmK = 256;  // length of one FMA chain
constexpr int kGemmRows = kLanes == 16 ? 12 : 4;
constexpr int kGemmCols = 2 * kLanes;  // two vectors of C for each row

// acc[r][j] = sum_k a[r * a_row + k * a_k] * b[k][j], then C = acc or C += acc. `b` is packed [K][kGemmCols].
template <int Rows>
inline void micro_kernel(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t K, float* c, int64_t c_row, int rows,
                         int cols, bool add) {
  Vec acc[Rows][2] = {};
  // A pointer for three rows each: all addresses are then base + {0, 1, 2} * a_row, which x86 forms for free.
  const float* base[(Rows + 2) / 3];
  for (int i = 0; i < (Rows + 2) / 3; ++i) base[i] = a + 3 * i * a_row;
  for (int64_t k = 0; k < K; ++k, b += kGemmCols) {
    Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Vec value = splat(base[r / 3][r % 3 * a_row]);
      acc[r][0] = fma(value, b0, acc[r][0]);
      acc[r][1] = fma(value, b1, acc[r][1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < (Rows + 2) / 3; ++i) base[i] += a_k;
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
inline float widen<float>(float value, bool round) {
  return round ? from_bf16(to_bf16(value)) : value;
}

// Four lines of four k each, transposed in registers.
inline void transpose4(const float* from, int64_t line_stride, float* to, int64_t width) {
  typedef float Quad __attribute__((vector_size(16)));
  typedef float UnalignedQuad __attribute__((vector_size(16), aligned(4), may_alias));
  auto line = [&](int i) -> Quad { return *reinterpret_cast<const UnalignedQuad*>(from + i * line_stride); };
  Quad a = line(0), b = line(1), c = line(2), d = line(3);
  Quad ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  Quad cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  auto put = [&](int k, Quad value) { *reinterpret_cast<UnalignedQuad*>(to + k * width) = value; };
  put(0, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5)), put(1, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
  put(2, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5)), put(3, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
}

// A full panel of f32 lines, as they stand: [K][Width].
template <int Width>
void pack_full(const float* at, int64_t line_stride, int64_t k_stride, int64_t K, float* to) {
  if (line_stride == 1) {
    for (int64_t k = 0; k < K; ++k) std::memcpy(to + k * Width, at + k * k_stride, Width * sizeof(float));
    return;
  }
  int64_t whole = k_stride == 1 && Width % 4 == 0 ? K / 4 * 4 : 0;
  for (int64_t k = 0; k < whole; k += 4)
    for (int i = 0; i + 4 <= Width; i += 4) transpose4(at + i * line_stride + k, line_stride, to + k * Width + i, Width);
  for (int i = 0; i < Width; ++i)
    for (int64_t k = whole; k < K; ++k) to[k * Width + i] = at[i * line_stride + k * k_stride];
}

// Packs `count` lines (rows of A or columns of B) of length K into panels [panel][K][width], zero beyond the end.
template <class T, int Width>
void pack(const T* from, int64_t line_stride, int64_t k_stride, int64_t count, int64_t K, bool round, float* to) {
  for (int64_t first = 0; first < count; first += Width, to += Width * K) {
    int lines = int(std::min<int64_t>(Width, count - first));
    const T* at = from + first * line_stride;
    if constexpr (std::is_same_v<T, float>) {
      if (lines == Width && !round) {
        pack_full<Width>(at, line_stride, k_stride, K, to);
        continue;
      }
    }
    if (lines < Width) std::fill(to, to + Width * K, 0.0f);
    // Eight k at a time keep the strided side within one cache line for each line.
    for (int64_t k0 = 0; k0 < K; k0 += 8)
      for (int i = 0; i < lines; ++i)
        for (int64_t k = k0; k < std::min<int64_t>(K, k0 + 8); ++k)
          to[k * Width + i] = widen(at[i * line_stride + k * k_stride], round);
  }
}

template <int Width>
void pack_any(const void* from, Storage type, int64_t offset, int64_t line_stride, int64_t k_stride, int64_t count, int64_t K,
              bool round, float* to) {
  if (type == Storage::f32)
    pack<float, Width>(static_cast<const float*>(from) + offset, line_stride, k_stride, count, K, round, to);
  else pack<uint16_t, Width>(static_cast<const uint16_t*>(from) + offset, line_stride, k_stride, count, K, false, to);
}

// Rows of A are read where they lie when they are f32, contiguous in k, and short enough that a panel's rows do not
// fall into the same few cache sets; else, and for a last panel that is not full, they are packed.
inline bool reads_in_place(const GemmParams& p) { return p.a_type == Storage::f32 && p.a_col == 1 && p.a_row <= 512; }

template <int Rows>
void multiply_panels(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> a_pack, b_pack;
  int64_t a_panels = (m1 - m0 + Rows - 1) / Rows, b_panels = (n1 - n0 + kGemmCols - 1) / kGemmCols;
  int64_t in_place = reads_in_place(p) ? (m1 - m0) / Rows : 0, packed = m0 + in_place * Rows;  // panels; first row packed
  a_pack.resize(std::max<size_t>(a_pack.size(), (a_panels - in_place) * Rows * kGemmK));
  b_pack.resize(std::max<size_t>(b_pack.size(), b_panels * kGemmCols * kGemmK));
  for (int64_t k0 = 0; k0 < p.K; k0 += kGemmK) {
    int64_t K = std::min<int64_t>(kGemmK, p.K - k0);
    pack_any<Rows>(p.a, p.a_type, packed * p.a_row + k0 * p.a_col, p.a_row, p.a_col, m1 - packed, K, false, a_pack.data());
    pack_any<kGemmCols>(p.b, p.b_type, k0 * p.b_row + n0 * p.b_col, p.b_col, p.b_row, n1 - n0, K, p.round_b_to_bf16,
                        b_pack.data());
    bool add = k0 > 0 || p.accumulate;
    for (int64_t j = 0; j < b_panels; ++j) {
      const float* b = b_pack.data() + j * kGemmCols * K;
      float* to = c + j * kGemmCols;
      int cols = int(std::min<int64_t>(kGemmCols, n1 - n0 - j * kGemmCols));
      for (int64_t i = 0; i < in_place; ++i)
        micro_kernel<Rows>(static_cast<const float*>(p.a) + (m0 + i * Rows) * p.a_row + k0, p.a_row, 1, b, K,
                           to + i * Rows * c_row, c_row, Rows, cols, add);
      for (int64_t i = in_place; i < a_panels; ++i)
        micro_kernel<Rows>(a_pack.data() + (i - in_place) * Rows * K, 1, Rows, b, K, to + i * Rows * c_row, c_row,
                           int(std::min<int64_t>(Rows, m1 - m0 - i * Rows)), cols, add);
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
      for (int64_t j = 0; j < cols; ++j) static_cast<uint16_t*>(p.c)[(m0 + r) * p.c_row + n0 + j] = to_bf16(c[r * cols + j]);
}

// The whole product on the calling thread.
inline void gemm_serial(const GemmParams& p) { gemm_region(p, 0, p.M, 0, p.N); }

}  // namespace fulgur::FULGUR_ISA
