// The GEMM micro-kernel, for kernels.cc files: gemm_serial(params) inside a task of parallel_for. See gemm.h.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {

constexpr int kGemmK = 256;  // length of one FMA chain
#if defined(__AVX512F__)
constexpr int kGemmRows = 12;  // 24 of 32 registers hold C
#elif defined(__AVX2__)
constexpr int kGemmRows = 6;  // 12 of 16
#else
constexpr int kGemmRows = 2;  // 8 of 16, four a row
#endif
constexpr int kGemmCols = 2 * kLanes;  // two vectors of C for each row

// Where the micro-kernel finds row r, column k of A: at[r * row + k * column].
struct RowsOfA {
  const float* at;
  int64_t row, column;
};

// acc[r][j] = sum_k a[r][k] * b[k][j], then C = acc or C += acc. `b` is packed [K][kGemmCols].
template <int Rows>
inline void micro_kernel(const RowsOfA& a, const float* b, int64_t K, float* c, int64_t c_row, int rows, int cols, bool add) {
  Vec acc[Rows][2] = {};
  for (int r = 0; r < rows; ++r) __builtin_prefetch(c + r * c_row, 1);  // a product later it is here
  // A pointer for three rows each: all addresses are then base + {0, 1, 2} * row, which x86 forms for free.
  const float* base[(Rows + 2) / 3];
  for (int i = 0; i < (Rows + 2) / 3; ++i) base[i] = a.at + 3 * i * a.row;
  for (int64_t k = 0; k < K; ++k, b += kGemmCols) {
    Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Vec value = splat(base[r / 3][r % 3 * a.row]);
      acc[r][0] = fma(value, b0, acc[r][0]);
      acc[r][1] = fma(value, b1, acc[r][1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < (Rows + 2) / 3; ++i) base[i] += a.column;
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

inline Vec load_as_f32(const float* at, bool round) { return round ? round_to_bf16(load(at)) : load(at); }
inline Vec load_as_f32(const uint16_t* at, bool) { return from_bf16(at); }

// Exchanges the elements of two lines whose positions differ in the bit `Bit`; all bits in turn transpose a square.
template <int Bit, size_t... J>
inline void exchange(Vec& low, Vec& high, std::index_sequence<J...>) {
  Vec first = __builtin_shufflevector(low, high, (int(J) & Bit ? kLanes + int(J) - Bit : int(J))...);
  high = __builtin_shufflevector(low, high, (int(J) & Bit ? kLanes + int(J) : int(J) + Bit)...);
  low = first;
}
template <int Bit = 1>
inline void transpose(Vec (&lines)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i)
    if (!(i & Bit)) exchange<Bit>(lines[i], lines[i + Bit], std::make_index_sequence<kLanes>{});
  if constexpr (2 * Bit < kLanes) transpose<2 * Bit>(lines);
}

// Where column n and row k of B begin.
inline int64_t column_of_b(const GemmParams& p, int64_t n) { return p.b_col * (p.b_columns ? p.b_columns[n] : n); }
inline int64_t row_of_b(const GemmParams& p, int64_t k) { return p.b_row * (p.b_rows ? p.b_rows[k] : k); }

// Columns [n, n + kLanes) of B, rows [k0, k0 + K), side by side in a panel of f32; zero where fewer than kLanes are left.
template <class T>
void pack_lanes(const GemmParams& p, int64_t k0, int64_t K, int64_t n, int64_t left, float* to) {
  const T* b = static_cast<const T*>(p.b);
  int64_t k = 0;
  if (left >= kLanes && p.b_col == 1 && !p.b_columns)
    for (; k < K; ++k) store(to + k * kGemmCols, load_as_f32(b + row_of_b(p, k0 + k) + n, p.round_b_to_bf16));
  if (left >= kLanes && p.b_row == 1 && !p.b_rows) {
    const T* line[kLanes];
    for (int i = 0; i < kLanes; ++i) line[i] = b + column_of_b(p, n + i) + k0;
    for (; k + kLanes <= K; k += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load_as_f32(line[i] + k, p.round_b_to_bf16);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (k + i) * kGemmCols, square[i]);
    }
  }
  for (int i = 0; i < kLanes; ++i)
    for (int64_t rest = k; rest < K; ++rest)
      to[rest * kGemmCols + i] = i < left ? widen(b[column_of_b(p, n + i) + row_of_b(p, k0 + rest)], p.round_b_to_bf16) : 0.0f;
}

// B[k0 .. k0+K][n0 .. n1) as panels [panel][K][kGemmCols].
template <class T>
void pack_b(const GemmParams& p, int64_t k0, int64_t K, int64_t n0, int64_t n1, float* to) {
  for (int64_t n = n0; n < n1; n += kGemmCols, to += kGemmCols * K)
    for (int i = 0; i < kGemmCols; i += kLanes) pack_lanes<T>(p, k0, K, n + i, n1 - n - i, to + i);
}

// Lines of f32 out of lines of any type and stride.
template <class T>
void widen_lines(const T* from, int64_t line_stride, int64_t stride, int64_t lines, int64_t length, float* to,
                 int64_t to_stride) {
  for (int64_t line = 0; line < lines; ++line, from += line_stride, to += to_stride) {
    int64_t i = 0;
    if (stride == 1)
      for (; i + kLanes <= length; i += kLanes) store(to + i, load_as_f32(from + i, false));
    for (; i < length; ++i) to[i] = widen(from[i * stride], false);
  }
}

// Rows [m0, m0 + rows) and columns [k0, k0 + K) of A as f32, its lines as they lie, rows or columns. One vector between lines
// keeps them from falling into the same few cache sets. `room` is for a multiple of a panel's rows.
template <class T>
RowsOfA widen_a(const GemmParams& p, int64_t m0, int64_t rows, int64_t room, int64_t k0, int64_t K, std::vector<float>& to) {
  const T* from = static_cast<const T*>(p.a) + m0 * p.a_row + k0 * p.a_col;
  bool by_row = p.a_col == 1;
  int64_t stride = (by_row ? kGemmK : room) + kLanes;
  to.resize(std::max<size_t>(to.size(), (by_row ? room : kGemmK) * stride));
  if (by_row) widen_lines(from, p.a_row, 1, rows, K, to.data(), stride);
  else widen_lines(from, p.a_col, p.a_row, K, rows, to.data(), stride);
  return by_row ? RowsOfA{to.data(), stride, 1} : RowsOfA{to.data(), 1, stride};
}

// Rows of A are read in place when they are f32, contiguous in k, and short enough that a panel's rows do not fall into the
// same few cache sets; else, and for a last panel that is not full, they are copied.
inline bool reads_in_place(const GemmParams& p) { return p.a_type == Storage::f32 && p.a_col == 1 && p.a_row <= 512; }

template <int Rows>
void multiply_panels(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> a_copy, b_pack;
  int64_t in_place = reads_in_place(p) ? (m1 - m0) / Rows * Rows : 0, rows = m1 - m0 - in_place;
  int64_t room = (rows + Rows - 1) / Rows * Rows, b_panels = (n1 - n0 + kGemmCols - 1) / kGemmCols;
  b_pack.resize(std::max<size_t>(b_pack.size(), b_panels * kGemmCols * kGemmK));
  for (int64_t k0 = 0; k0 < p.K; k0 += kGemmK) {
    int64_t K = std::min<int64_t>(kGemmK, p.K - k0);
    bool add = k0 > 0 || p.accumulate;
    RowsOfA copied = p.a_type == Storage::f32 ? widen_a<float>(p, m0 + in_place, rows, room, k0, K, a_copy)
                                              : widen_a<uint16_t>(p, m0 + in_place, rows, room, k0, K, a_copy);
    if (p.b_type == Storage::f32) pack_b<float>(p, k0, K, n0, n1, b_pack.data());
    else pack_b<uint16_t>(p, k0, K, n0, n1, b_pack.data());
    for (int64_t j = 0; j < b_panels; ++j) {
      const float* b = b_pack.data() + j * kGemmCols * K;
      float* to = c + j * kGemmCols;
      int cols = int(std::min<int64_t>(kGemmCols, n1 - n0 - j * kGemmCols));
      for (int64_t m = 0; m < in_place; m += Rows)
        micro_kernel<Rows>({static_cast<const float*>(p.a) + (m0 + m) * p.a_row + k0, p.a_row, 1}, b, K, to + m * c_row, c_row,
                           Rows, cols, add);
      for (int64_t m = 0; m < rows; m += Rows)
        micro_kernel<Rows>({copied.at + m * copied.row, copied.row, copied.column}, b, K, to + (in_place + m) * c_row, c_row,
                           int(std::min<int64_t>(Rows, rows - m)), cols, add);
    }
  }
}

// acc[r][j] += sum of row[r][k] * turned[k - first][j] over k in [first, first + depth), ascending.
template <int Rows>
inline void multiply_square(const float* const (&row)[Rows], int64_t first, const Vec (&turned)[kLanes], int depth,
                            Vec (&acc)[Rows]) {
#pragma GCC unroll 16
  for (int k = 0; k < kLanes; ++k) {
    if (k == depth) break;
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) acc[r] = fma(splat(row[r][first + k]), turned[k], acc[r]);
  }
}

// Up to `Rows` rows of A by columns [n0, n1) of B, which is contiguous in k: each weight is read once, where it lies, and
// turned in registers; packing it would cost more than the product does.
template <int Rows, class T>
void multiply_few(const GemmParams& p, const float* const (&row)[Rows], int rows, int64_t n0, int64_t n1, float* c,
                  int64_t c_row) {
  for (int64_t n = n0; n < n1; n += kLanes, c += kLanes) {
    int cols = int(std::min<int64_t>(kLanes, n1 - n));
    const T* line[kLanes];
    for (int i = 0; i < kLanes; ++i) line[i] = static_cast<const T*>(p.b) + column_of_b(p, i < cols ? n + i : n);
    Vec total[Rows] = {}, turned[kLanes];
    for (int r = 0; p.accumulate && r < rows; ++r) std::memcpy(&total[r], c + r * c_row, cols * sizeof(float));
    for (int64_t k0 = 0; k0 < p.K; k0 += kGemmK) {
      Vec acc[Rows] = {};
      int64_t k = k0, end = std::min<int64_t>(p.K, k0 + kGemmK);
      for (; k + kLanes <= end; k += kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) turned[i] = load_as_f32(line[i] + k, p.round_b_to_bf16);
        transpose(turned);
        multiply_square<Rows>(row, k, turned, kLanes, acc);
      }
      if (k < end) {
        for (int i = 0; i < kLanes; ++i) {
          T part[kLanes] = {};
          std::copy(line[i] + k, line[i] + end, part);
          turned[i] = load_as_f32(part, p.round_b_to_bf16);
        }
        transpose(turned);
        multiply_square<Rows>(row, k, turned, int(end - k), acc);
      }
      for (int r = 0; r < Rows; ++r) total[r] = k0 > 0 || p.accumulate ? total[r] + acc[r] : acc[r];
    }
    for (int r = 0; r < rows; ++r) std::memcpy(c + r * c_row, &total[r], cols * sizeof(float));
  }
}

template <int Rows>
void multiply_few(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> widened;
  int rows = int(m1 - m0);
  bool as_it_lies = p.a_type == Storage::f32 && p.a_col == 1;
  if (!as_it_lies) {
    widened.resize(std::max<size_t>(widened.size(), rows * p.K));
    if (p.a_type == Storage::f32)
      widen_lines(static_cast<const float*>(p.a) + m0 * p.a_row, p.a_row, p.a_col, rows, p.K, widened.data(), p.K);
    else widen_lines(static_cast<const uint16_t*>(p.a) + m0 * p.a_row, p.a_row, p.a_col, rows, p.K, widened.data(), p.K);
  }
  const float* row[Rows];  // rows that are not there repeat the last, and are not stored
  for (int r = 0; r < Rows; ++r) {
    int at = std::min(r, rows - 1);
    row[r] = as_it_lies ? static_cast<const float*>(p.a) + (m0 + at) * p.a_row : widened.data() + at * p.K;
  }
  if (p.b_type == Storage::f32) multiply_few<Rows, float>(p, row, rows, n0, n1, c, c_row);
  else multiply_few<Rows, uint16_t>(p, row, rows, n0, n1, c, c_row);
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
  if (rows <= 8 && p.b_row == 1 && !p.b_rows) {
    auto multiply = rows == 1 ? multiply_few<1> : rows == 2 ? multiply_few<2> : rows <= 4 ? multiply_few<4> : multiply_few<8>;
    multiply(p, m0, m1, n0, n1, c, c_row);
  } else if (rows == 1) multiply_panels<1>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 4) multiply_panels<4>(p, m0, m1, n0, n1, c, c_row);
  else multiply_panels<kGemmRows>(p, m0, m1, n0, n1, c, c_row);
  if (p.c_type == Storage::bf16)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < cols; ++j) static_cast<uint16_t*>(p.c)[(m0 + r) * p.c_row + n0 + j] = to_bf16(c[r * cols + j]);
}

// The whole product on the calling thread, 256 columns at a time: their panels of B stay in the second-level cache.
inline void gemm_serial(const GemmParams& p) {
  for (int64_t n = 0; n < p.N; n += 256) gemm_region(p, 0, p.M, n, std::min(p.N, n + 256));
}

}  // namespace fulgur::FULGUR_ISA
