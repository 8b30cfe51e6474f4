// The GEMM micro-kernel and what it is fed: rows of A as f32 or pairs, panels of B. Part of gemm_kernel.h.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "fulgur/ops/linear/gemm_math.h"

namespace fulgur::FULGUR_ISA {

constexpr int kGemmK = 256;  // length of one FMA chain
#if defined(__AVX512F__)
constexpr int kGemmRows = 12;  // 24 of 32 registers hold C
constexpr int kHalfRows = 8;   // where panels of 12 would be a tenth emptier
#elif defined(__AVX2__)
constexpr int kGemmRows = 6;  // 12 of 16
constexpr int kHalfRows = 6;
#else
constexpr int kGemmRows = 2;  // 8 of 16, four a row
constexpr int kHalfRows = 2;
#endif
constexpr int kGemmCols = 2 * kLanes;  // two vectors of C for each row

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

// Where the micro-kernel finds word k of row r of A: at[r * row + k * column]; the next panel's rows are `panel` further.
struct RowsOfA {
  const float* at;
  int64_t row, column, panel;
};

// Where it finds two vectors of word k of B: in a panel [words][kGemmCols], asked for in order,
struct Panel {
  const float* at;
  void read(int64_t, Vec& b0, Vec& b1) {
    b0 = load(at), b1 = load(at + kLanes);
    at += kGemmCols;
  }
};
// or in its own rows, which may be gathered: those are asked for a while before.
template <class T>
struct OwnRows {
  static constexpr int64_t kAhead = 32;
  const T* at;
  const int32_t* rows;
  int64_t stride, last;
  void read(int64_t k, Vec& b0, Vec& b1) const {
    const T* row = at + (rows ? rows[k] : k) * stride;
    if (rows) {
      const T* next = at + rows[std::min(k + kAhead, last)] * stride;
      __builtin_prefetch(next), __builtin_prefetch(next + kGemmCols - 1);
    }
    b0 = load_as_f32(row, false), b1 = load_as_f32(row + kLanes, false);
  }
};

// acc[r][j] = sum_k a[r][k] * b[k][j], then C = acc or C += acc.
template <int Rows, class Math, class B>
inline void micro_kernel(const RowsOfA& a, B b, int64_t words, float* c, int64_t c_row, int rows, int cols, bool add) {
  Vec acc[Rows][2] = {};
  for (int r = 0; r < rows; ++r) __builtin_prefetch(c + r * c_row, 1);  // a product later it is here
  // A pointer for three rows each: all addresses are then base + {0, 1, 2} * row, which x86 forms for free.
  const float* base[(Rows + 2) / 3];
  for (int i = 0; i < (Rows + 2) / 3; ++i) base[i] = a.at + 3 * i * a.row;
  for (int64_t k = 0; k < words; ++k) {
    Vec b0, b1;
    b.read(k, b0, b1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Vec value = splat(base[r / 3][r % 3 * a.row]);
      acc[r][0] = Math::multiply_add(value, b0, acc[r][0]);
      acc[r][1] = Math::multiply_add(value, b1, acc[r][1]);
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

// Where a lane holds two bf16 that are multiplied one after the other, not a word of the product.
template <class Math, class T>
constexpr bool kTwoInALane = Math::kPerWord == 1 && std::is_same_v<T, uint16_t>;

// The 32-bit words of packed column n, kPanel apart.
template <class T>
inline const float* panel_words(const GemmParams& p, int64_t n) {
  return reinterpret_cast<const float*>(static_cast<const T*>(p.b) + n / kPanel * kPanel * p.K) + n % kPanel;
}

// Columns [n, n + kLanes) and rows [k0, k0 + K) of packed B, as pack_lanes leaves them.
template <class Math, class T>
void copy_lanes(const GemmParams& p, int64_t k0, int64_t K, int64_t n, float* to) {
  constexpr int kPerLane = kTwoInALane<Math, T> ? 2 : 1, kStep = kPerLane * Math::kPerWord;
  const float* from = panel_words<T>(p, n) + k0 / kStep * kPanel;
  for (int64_t line = 0; line < K / kStep; ++line, from += kPanel, to += kPerLane * kGemmCols) {
    Vec words = load(from);
    auto bits = reinterpret_cast<VecUint>(words);
    store(to, kPerLane == 2 ? reinterpret_cast<Vec>(bits << 16) : words);
    if constexpr (kPerLane == 2) store(to + kGemmCols, reinterpret_cast<Vec>(bits & 0xffff0000u));
  }
}

// Where column n and row k of B begin.
inline int64_t column_of_b(const GemmParams& p, int64_t n) { return p.b_col * (p.b_columns ? p.b_columns[n] : n); }
inline int64_t row_of_b(const GemmParams& p, int64_t k) { return p.b_row * (p.b_rows ? p.b_rows[k] : k); }

// kLanes words of a line that is contiguous in k.
template <class Math, class T>
inline Vec load_words(const T* at, bool round) {
  if constexpr (Math::kPerWord == 1) return load_as_f32(at, round);
  else if constexpr (std::is_same_v<T, uint16_t>) return load(reinterpret_cast<const float*>(at));
  else {
    uint16_t halves[2 * kLanes];
    to_bf16(load(at), halves), to_bf16(load(at + kLanes), halves + kLanes);
    return load(reinterpret_cast<const float*>(halves));
  }
}

// kLanes words of as many columns, that of k and, in pairs, of the next; rows are contiguous.
template <class Math, class T>
inline Vec load_across(const T* k, const T* next, bool round) {
  if constexpr (Math::kPerWord == 1) return load_as_f32(k, round);
  else {
    auto low = reinterpret_cast<VecUint>(load_as_f32(k, round));
    auto high = next ? reinterpret_cast<VecUint>(load_as_f32(next, round)) : VecUint{};
    return reinterpret_cast<Vec>((low >> 16) | high);
  }
}

// The word at k of one column.
template <class Math, class T>
inline float word_of(const T* column, const GemmParams& p, int64_t k, int64_t end) {
  auto value = [&](int64_t at) { return at < end ? widen(column[row_of_b(p, at)], p.round_b_to_bf16) : 0.0f; };
  if constexpr (Math::kPerWord == 1) return value(k);
  else {
    uint16_t halves[2] = {to_bf16(value(k)), to_bf16(value(k + 1))};
    float word;
    std::memcpy(&word, halves, sizeof word);
    return word;
  }
}

// Columns [n, n + kLanes) of B, rows [k0, k0 + K), side by side in a panel of words; zero where fewer than kLanes are left.
template <class Math, class T>
void pack_lanes(const GemmParams& p, int64_t k0, int64_t K, int64_t n, int64_t left, float* to) {
  constexpr int64_t kStep = Math::kPerWord;
  const T* b = static_cast<const T*>(p.b);
  int64_t word = 0, words = words_of<Math>(K);
  if (p.b_panels == Panels::plain && left > 0) return copy_lanes<Math, T>(p, k0, K, n, to);
  if (left >= kLanes && p.b_col == 1 && !p.b_columns)
    for (; word < words; ++word) {
      int64_t k = k0 + word * kStep;
      const T* next = kStep == 2 && k + 1 < k0 + K ? b + row_of_b(p, k + 1) + n : nullptr;
      store(to + word * kGemmCols, load_across<Math>(b + row_of_b(p, k) + n, next, p.round_b_to_bf16));
    }
  if (left >= kLanes && p.b_row == 1 && !p.b_rows) {
    const T* line[kLanes];
    for (int i = 0; i < kLanes; ++i) line[i] = b + column_of_b(p, n + i) + k0;
    for (; (word + kLanes) * kStep <= K; word += kLanes) {
      Vec square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load_words<Math>(line[i] + word * kStep, p.round_b_to_bf16);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (word + i) * kGemmCols, square[i]);
    }
  }
  for (int i = 0; i < kLanes; ++i)
    for (int64_t rest = word; rest < words; ++rest)
      to[rest * kGemmCols + i] = i < left ? word_of<Math>(b + column_of_b(p, n + i), p, k0 + rest * kStep, k0 + K) : 0.0f;
}

// B[k0 .. k0+K][n0 .. n1) in a quantised format as panels [panel][words][kGemmCols].
template <class Math, class Format>
void unpack_panels(const GemmParams& p, int64_t k0, int64_t K, int64_t n0, int64_t n1, float* to) {
  int64_t words = words_of<Math>(K);
  for (int64_t n = n0; n < n1; n += kPanel)
    unpack_panel<Math, Format>(p, n, k0, K, to + (n - n0) / kGemmCols * kGemmCols * words + (n - n0) % kGemmCols, kGemmCols);
}

// Rows of B as they lie, a line of the cache of each after the other, as panels [panel][K][kGemmCols]; whole vectors only.
template <class T>
void pack_rows(const GemmParams& p, int64_t k0, int64_t K, int64_t n0, int64_t n1, float* to) {
  constexpr int64_t kLine = std::max<int64_t>(64 / sizeof(T), kGemmCols);
  for (int64_t n = n0; n < n1; n += kLine, to += kLine * K) {
    const T* b = static_cast<const T*>(p.b) + n;
    int64_t whole = std::min(kLine, n1 - n) / kLanes * kLanes;
    for (int64_t k = 0; k < K; ++k) {
      const T* row = b + row_of_b(p, k0 + k);
      if (p.b_rows && k + 8 < K) __builtin_prefetch(b + row_of_b(p, k0 + k + 8));
#pragma GCC unroll 8
      for (int64_t i = 0; i < kLine; i += kLanes)
        if (i < whole)
          store(to + i / kGemmCols * kGemmCols * K + k * kGemmCols + i % kGemmCols, load_as_f32(row + i, p.round_b_to_bf16));
    }
  }
}

// Any other B.
template <class Math>
void pack_b(const GemmParams& p, int64_t k0, int64_t K, int64_t n0, int64_t n1, float* to) {
  if (p.b_panels == Panels::fp8) return unpack_panels<Math, Fp8>(p, k0, K, n0, n1, to);
  bool by_rows = Math::kPerWord == 1 && p.b_col == 1 && !p.b_columns && p.b_panels == Panels::none;
  if (by_rows && p.b_type == Storage::f32) pack_rows<float>(p, k0, K, n0, n1, to);
  else if (by_rows) pack_rows<uint16_t>(p, k0, K, n0, n1, to);
  for (int64_t n = n0; n < n1; n += kGemmCols, to += kGemmCols * words_of<Math>(K))
    for (int i = 0; i < kGemmCols; i += kLanes) {
      if (by_rows && n + i + kLanes <= n1) continue;
      if (p.b_type == Storage::f32) pack_lanes<Math, float>(p, k0, K, n + i, n1 - n - i, to + i);
      else pack_lanes<Math, uint16_t>(p, k0, K, n + i, n1 - n - i, to + i);
    }
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

// Some columns of A, contiguous in m, into panels [panel][K][Rows]; `to` is their place in the first.
template <int Rows>
void turn_columns(const float* from, int64_t stride, int64_t columns, int64_t rows, int64_t K, float* to) {
  for (int64_t m = 0; m < rows; m += Rows)
    for (int64_t k = 0; k < columns; ++k) {
      const float* line = from + k * stride + m;
      float* at = to + m * K + k * Rows;
      if (rows - m >= Rows) std::memcpy(at, line, Rows * sizeof(float));
      else
        for (int r = 0; r < Rows; ++r) at[r] = m + r < rows ? line[r] : 0.0f;
    }
}

// A few columns at a time, so that their lines stay in the cache.
template <int Rows, class T>
void turn_a(const T* from, int64_t stride, int64_t rows, int64_t K, float* to) {
  constexpr int64_t kDepth = 16;
  static thread_local std::vector<float> widened;
  for (int64_t k = 0; k < K; k += kDepth) {
    int64_t columns = std::min(kDepth, K - k);
    if constexpr (std::is_same_v<T, float>) {
      turn_columns<Rows>(from + k * stride, stride, columns, rows, K, to + k * Rows);
    } else {
      widened.resize(std::max<size_t>(widened.size(), kDepth * rows));
      widen_lines(from + k * stride, stride, 1, columns, rows, widened.data(), rows);
      turn_columns<Rows>(widened.data(), rows, columns, rows, K, to + k * Rows);
    }
  }
}

// Rows [m0, m0 + rows) and columns [k0, k0 + K) of A as f32: rows as they lie, one vector between them, which keeps them from
// falling into the same few cache sets; or, where they are contiguous in m, panels. `room` is for a multiple of a panel's rows.
template <int Rows, class T>
RowsOfA widen_a(const GemmParams& p, int64_t m0, int64_t rows, int64_t room, int64_t k0, int64_t K, std::vector<float>& to) {
  constexpr int64_t kStride = kGemmK + kLanes;
  const T* from = static_cast<const T*>(p.a) + m0 * p.a_row + k0 * p.a_col;
  to.resize(std::max<size_t>(to.size(), room * kStride));
  if (p.a_row == 1) {
    turn_a<Rows>(from, p.a_col, rows, K, to.data());
    return {to.data(), 1, Rows, Rows * K};
  }
  widen_lines(from, p.a_row, p.a_col, rows, K, to.data(), kStride);
  return {to.data(), kStride, 1, Rows * kStride};
}

// The same as rows of pairs, a zero behind an odd K.
inline RowsOfA pair_a(const GemmParams& p, int64_t m0, int64_t rows, int64_t k0, int64_t K, int64_t stride, float* to) {
  for (int64_t m = 0; m < rows; ++m) {
    const auto* from = static_cast<const uint16_t*>(p.a) + (m0 + m) * p.a_row + k0 * p.a_col;
    auto* line = reinterpret_cast<uint16_t*>(to + m * stride);
    if (p.a_col == 1) std::memcpy(line, from, K * sizeof *from);
    else
      for (int64_t k = 0; k < K; ++k) line[k] = from[k * p.a_col];
    if (K % 2 == 1) line[K] = 0;
  }
  return {to, stride, 1, 0};
}

template <int Rows, class Math>
RowsOfA copy_a(const GemmParams& p, int64_t m0, int64_t rows, int64_t room, int64_t k0, int64_t K, std::vector<float>& to) {
  if constexpr (Math::kPerWord == 2) {
    constexpr int64_t kStride = kGemmK / 2 + kLanes;
    to.resize(std::max<size_t>(to.size(), room * kStride));
    RowsOfA pairs = pair_a(p, m0, rows, k0, K, kStride, to.data());
    pairs.panel = Rows * kStride;
    return pairs;
  } else {
    return p.a_type == Storage::f32 ? widen_a<Rows, float>(p, m0, rows, room, k0, K, to)
                                    : widen_a<Rows, uint16_t>(p, m0, rows, room, k0, K, to);
  }
}

// Rows of A that are whole words where they lie.
template <class Math>
bool lies_in_words(const GemmParams& p) {
  if constexpr (Math::kPerWord == 1) return p.a_type == Storage::f32 && p.a_col == 1;
  return p.a_col == 1 && p.a_row % 2 == 0 && p.K % 2 == 0 && reinterpret_cast<uintptr_t>(p.a) % 4 == 0;
}
template <class Math>
const float* words_at(const GemmParams& p, int64_t m, int64_t k) {
  return static_cast<const float*>(p.a) + (m * p.a_row + k) / Math::kPerWord;
}

// One or two panels of rows use what they pack of B too seldom: they read rows of B where they lie instead.
template <int Rows, class Math>
bool rows_of_b_serve(const GemmParams& p, int64_t rows) {
  return Math::kPerWord == 1 && rows <= 2 * Rows && p.b_col == 1 && !p.b_columns && p.b_panels == Panels::none &&
         !p.round_b_to_bf16;
}
template <class T>
OwnRows<T> own_rows(const GemmParams& p, int64_t k, int64_t n) {
  const T* at = static_cast<const T*>(p.b) + n;
  return p.b_rows ? OwnRows<T>{at, p.b_rows + k, p.b_row, p.K - 1 - k} : OwnRows<T>{at + k * p.b_row, nullptr, p.b_row, 0};
}

// Rows of A are read in place when they are words, contiguous in k, and short enough that a panel's rows do not fall into the
// same few cache sets; else, and for a last panel that is not full, they are copied.
template <int Rows, class Math>
void multiply_panels(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> a_copy, b_pack;
  bool short_rows = lies_in_words<Math>(p) && p.a_row <= 512 * Math::kPerWord;
  int64_t in_place = short_rows ? (m1 - m0) / Rows * Rows : 0, rows = m1 - m0 - in_place;
  int64_t room = (rows + Rows - 1) / Rows * Rows, b_panels = (n1 - n0 + kGemmCols - 1) / kGemmCols;
  b_pack.resize(std::max<size_t>(b_pack.size(), b_panels * kGemmCols * kGemmK));
  int64_t own = rows_of_b_serve<Rows, Math>(p, m1 - m0) ? (n1 - n0) / kGemmCols : 0;  // panels that are not packed
  for (int64_t k0 = 0; k0 < p.K; k0 += kGemmK) {
    int64_t K = std::min<int64_t>(kGemmK, p.K - k0), words = words_of<Math>(K);
    bool add = k0 > 0 || p.accumulate;
    RowsOfA copied = copy_a<Rows, Math>(p, m0 + in_place, rows, room, k0, K, a_copy);
    auto panel_of_a = [&](int64_t m) {
      if (m < in_place) return RowsOfA{words_at<Math>(p, m0 + m, k0), p.a_row / Math::kPerWord, 1, 0};
      return RowsOfA{copied.at + (m - in_place) / Rows * copied.panel, copied.row, copied.column, 0};
    };
    for (int64_t j = 0; j < own; ++j)
      for (int64_t m = 0; m < m1 - m0; m += Rows) {
        float* to = c + m * c_row + j * kGemmCols;
        int some = int(std::min<int64_t>(Rows, m1 - m0 - m));
        int64_t n = n0 + j * kGemmCols;
        if (p.b_type == Storage::f32)
          micro_kernel<Rows, Math>(panel_of_a(m), own_rows<float>(p, k0, n), K, to, c_row, some, kGemmCols, add);
        else micro_kernel<Rows, Math>(panel_of_a(m), own_rows<uint16_t>(p, k0, n), K, to, c_row, some, kGemmCols, add);
      }
    pack_b<Math>(p, k0, K, n0 + own * kGemmCols, n1, b_pack.data());
    for (int64_t j = own; j < b_panels; ++j) {
      Panel b{b_pack.data() + (j - own) * kGemmCols * words};
      float* to = c + j * kGemmCols;
      int cols = int(std::min<int64_t>(kGemmCols, n1 - n0 - j * kGemmCols));
      for (int64_t m = 0; m < m1 - m0; m += Rows)
        micro_kernel<Rows, Math>(panel_of_a(m), b, words, to + m * c_row, c_row, int(std::min<int64_t>(Rows, m1 - m0 - m)), cols,
                                 add);
    }
  }
}

}  // namespace fulgur::FULGUR_ISA
