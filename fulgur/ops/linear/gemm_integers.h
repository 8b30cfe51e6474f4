// Products of rows of integers with panels of integers, part of gemm_kernel.h.
#pragma once

#include "fulgur/ops/linear/integer_tiles.h"

namespace fulgur::FULGUR_ISA {

inline const float* integer_words(const GemmParams& p, int64_t m, int64_t k) {
  return reinterpret_cast<const float*>(static_cast<const int8_t*>(p.a) + m * p.a_row + k);
}

constexpr int kVecs = kGemmCols / kLanes;  // of a line of a tile

// tile[r][j] = sum_word a[r][word] * b[word][j].
template <int Rows>
inline void multiply_tile(const float* a, int64_t a_row, const float* b, int64_t words, float* tile) {
  Vec acc[Rows][kVecs];
#pragma GCC unroll 16
  for (int i = 0; i < Rows * kVecs; ++i) acc[i / kVecs][i % kVecs] = Vec{};
  for (int64_t word = 0; word < words; ++word, b += kGemmCols) {
    Vec b0 = load(b), b1 = load(b + kLanes);
    keep(b0), keep(b1);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      Vec value = splat(a[r * a_row + word]);
      acc[r][0] = IntQuads::multiply_add(value, b0, acc[r][0]);
      acc[r][1] = IntQuads::multiply_add(value, b1, acc[r][1]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) store(tile + r * kGemmCols, acc[r][0]), store(tile + r * kGemmCols + kLanes, acc[r][1]);
}

// C += the sums of a tile of rows from m on and `vecs` vectors of columns over one group of k, scaled.
template <class Format>
inline void add_tile(const GemmParams& p, const float* tile, int64_t m, int64_t rows, int64_t k, const Vec (&units)[kVecs],
                     int64_t vecs, float* c, int64_t c_row) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t v = 0; v < vecs; ++v) {
      float* to = c + r * c_row + v * kLanes;
      store(to, add_integers<Format>(p, m + r, k, load(tile + r * kGemmCols + v * kLanes), units[v], load(to)));
    }
}

// Many rows: 128 k of the rows and of the columns, unpacked, go into the second-level cache and are multiplied tile by tile.
template <int Rows, class Format>
void multiply_integer_panels(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> panels, lines;
  constexpr int64_t kWords = words_of<IntQuads>(kIntegerGroup), kLine = kWords + kLanes;  // apart from the same few cache sets
  constexpr int64_t kGroups = kIntegerGroup / Format::kGroup;
  panels.resize(std::max<size_t>(panels.size(), (n1 - n0 + kGemmCols) * kWords));
  lines.resize(std::max<size_t>(lines.size(), (m1 - m0 + Rows) * kLine));
  for (int64_t r = 0; !p.accumulate && r < m1 - m0; ++r) std::fill_n(c + r * c_row, n1 - n0, 0.0f);
  for (int64_t k0 = 0; k0 < p.K; k0 += kIntegerGroup) {
    int64_t K = std::min(kIntegerGroup, p.K - k0), words = words_of<IntQuads>(K);
    unpack_panels<IntQuads, Format>(p, k0, K, n0, n1, panels.data());
    for (int64_t m = m0; m < m1; ++m) std::copy_n(integer_words(p, m, k0), words, lines.data() + (m - m0) * kLine);
    for (int64_t n = n0; n < n1; n += kGemmCols) {
      int64_t vecs = std::min<int64_t>(kVecs, (n1 - n) / kLanes);
      Vec units[kGroups][kVecs] = {};
      for (int64_t k = 0; k < K; k += Format::kGroup)
        for (int64_t v = 0; v < vecs; ++v) units[k / Format::kGroup][v] = scales_of<Format>(p, n + v * kLanes, k0 + k);
      for (int64_t m = m0; m < m1; m += Rows) {
        int64_t rows = std::min<int64_t>(Rows, m1 - m);
        float* to = c + (m - m0) * c_row + n - n0;
        for (int64_t r = 0; r < rows; ++r) __builtin_prefetch(to + r * c_row, 1);
        for (int64_t k = 0; k < K; k += Format::kGroup) {
          float tile[Rows * kGemmCols];
          const float* a = lines.data() + (m - m0) * kLine + words_of<IntQuads>(k);
          const float* b = panels.data() + (n - n0) * words + words_of<IntQuads>(k) * kGemmCols;
          multiply_tile<Rows>(a, kLine, b, words_of<IntQuads>(std::min(Format::kGroup, K - k)), tile);
          add_tile<Format>(p, tile, m, rows, k0 + k, units[k / Format::kGroup], vecs, to, c_row);
        }
      }
    }
  }
}

template <int Rows, class Format>
void multiply_few_integers(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  const float* row[Rows];
  for (int64_t r = 0; r < Rows; ++r) row[r] = integer_words(p, std::min(m0 + r, m1 - 1), 0);
  multiply_packed<Rows, IntQuads, FormatWords<IntQuads, Format>>(p, row, m0, int(m1 - m0), n0, n1, c, c_row);
}

template <class Format>
void multiply_integers(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  int64_t rows = m1 - m0;
  if constexpr (kHasTiles)
    if (rows > kTileRows && integer_tiles()) return multiply_tiled_integers<Format>(p, m0, m1, n0, n1, c, c_row);
  if (rows == 1) multiply_few_integers<1, Format>(p, m0, m1, n0, n1, c, c_row);
  else if (rows == 2) multiply_few_integers<2, Format>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 4) multiply_few_integers<4, Format>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 16) multiply_few_integers<16, Format>(p, m0, m1, n0, n1, c, c_row);
  else multiply_integer_panels<kGemmRows, Format>(p, m0, m1, n0, n1, c, c_row);
}

}  // namespace fulgur::FULGUR_ISA
