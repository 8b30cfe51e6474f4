// Products of rows of integers with panels of integers, part of gemm_kernel.h.
#pragma once

#include "fulgur/ops/linear/gemm_few.h"

namespace fulgur::FULGUR_ISA {

inline const float* integer_words(const GemmParams& p, int64_t m, int64_t k) {
  return reinterpret_cast<const float*>(static_cast<const int16_t*>(p.a) + m * p.a_row + k);
}

// C += the sums of a tile of rows [m, m + rows) and a panel's columns [n, end) over one group of k, scaled.
template <class Format>
inline void add_tile(const GemmParams& p, const float* tile, int64_t m, int64_t rows, int64_t n, int64_t end, int64_t k, float* c,
                     int64_t c_row) {
  for (int64_t at = n; at < end; at += kLanes) {
    Vec unit = scales_of<Format>(p, at, k);
    for (int64_t r = 0; r < rows; ++r) {
      float* to = c + r * c_row + at - n;
      store(to, add_integers(p, m + r, k, load(tile + r * kGemmCols + at - n), unit, load(to)));
    }
  }
}

// Many rows: 128 k of the rows and of the columns, unpacked, go into the second-level cache and are multiplied tile by tile.
template <int Rows, class Format>
void multiply_integer_panels(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> panels, lines;
  constexpr int64_t kWords = words_of<IntPairs>(kIntegerGroup), kLine = kWords + kLanes;  // apart from the same few cache sets
  panels.resize(std::max<size_t>(panels.size(), (n1 - n0 + kGemmCols) * kWords));
  lines.resize(std::max<size_t>(lines.size(), (m1 - m0 + Rows) * kLine));
  for (int64_t r = 0; !p.accumulate && r < m1 - m0; ++r) std::fill_n(c + r * c_row, n1 - n0, 0.0f);
  for (int64_t k0 = 0; k0 < p.K; k0 += kIntegerGroup) {
    int64_t K = std::min(kIntegerGroup, p.K - k0), words = words_of<IntPairs>(K);
    unpack_panels<IntPairs, Format>(p, k0, K, n0, n1, panels.data());
    for (int64_t m = m0; m < m1; ++m) std::copy_n(integer_words(p, m, k0), words, lines.data() + (m - m0) * kLine);
    for (int64_t n = n0; n < n1; n += kGemmCols)
      for (int64_t m = m0; m < m1; m += Rows)
        for (int64_t k = 0; k < K; k += Format::kGroup) {
          for (int64_t r = 0; r < std::min<int64_t>(Rows, m1 - m); ++r) __builtin_prefetch(c + (m - m0 + r) * c_row + n - n0, 1);
          float tile[Rows * kGemmCols];
          RowsOfA a{lines.data() + (m - m0) * kLine + words_of<IntPairs>(k), kLine, 1, 0};
          Panel b{panels.data() + (n - n0) * words + words_of<IntPairs>(k) * kGemmCols};
          micro_kernel<Rows, IntPairs>(a, b, words_of<IntPairs>(std::min(Format::kGroup, K - k)), tile, kGemmCols, Rows,
                                       kGemmCols, false);
          add_tile<Format>(p, tile, m, std::min<int64_t>(Rows, m1 - m), n, std::min(n1, n + kGemmCols), k0 + k,
                           c + (m - m0) * c_row + n - n0, c_row);
        }
  }
}

template <int Rows, class Format>
void multiply_few_integers(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  const float* row[Rows];
  for (int64_t r = 0; r < Rows; ++r) row[r] = integer_words(p, std::min(m0 + r, m1 - 1), 0);
  multiply_packed<Rows, IntPairs, FormatWords<IntPairs, Format>>(p, row, m0, int(m1 - m0), n0, n1, c, c_row);
}

template <class Format>
void multiply_integers(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  int64_t rows = m1 - m0;
  if (rows == 1) multiply_few_integers<1, Format>(p, m0, m1, n0, n1, c, c_row);
  else if (rows == 2) multiply_few_integers<2, Format>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 4) multiply_few_integers<4, Format>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 16) multiply_few_integers<16, Format>(p, m0, m1, n0, n1, c, c_row);
  else multiply_integer_panels<kGemmRows, Format>(p, m0, m1, n0, n1, c, c_row);
}

}  // namespace fulgur::FULGUR_ISA
