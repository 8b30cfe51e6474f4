// The GEMM on one thread, for kernels.cc files: gemm_serial(params) inside a task of parallel_for. See gemm.h. Many rows go
// through gemm_panels.h, which packs B; few rows through gemm_few.h, which does not; integers through gemm_integers.h.
#pragma once

#include "fulgur/ops/linear/gemm_integers.h"

namespace fulgur::FULGUR_ISA {

constexpr int64_t whole(int64_t panel, int64_t rows) { return (rows + panel - 1) / panel * panel; }

template <class Math>
void multiply(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  int64_t rows = m1 - m0;
  if (rows <= (p.b_panels != Panels::none ? 16 : p.b_row == 1 && !p.b_rows ? 8 : 0)) {
    if (rows == 1) multiply_few<1, Math>(p, m0, m1, n0, n1, c, c_row);
    else if (rows == 2) multiply_few<2, Math>(p, m0, m1, n0, n1, c, c_row);
    else if (rows <= 4) multiply_few<4, Math>(p, m0, m1, n0, n1, c, c_row);
    else if (rows <= 8) multiply_few<8, Math>(p, m0, m1, n0, n1, c, c_row);
    else multiply_few<16, Math>(p, m0, m1, n0, n1, c, c_row);
  } else if (rows == 1) multiply_panels<1, Math>(p, m0, m1, n0, n1, c, c_row);
  else if (rows <= 4) multiply_panels<4, Math>(p, m0, m1, n0, n1, c, c_row);
  else if (10 * whole(kHalfRows, rows) < 9 * whole(kGemmRows, rows))
    multiply_panels<kHalfRows, Math>(p, m0, m1, n0, n1, c, c_row);
  else multiply_panels<kGemmRows, Math>(p, m0, m1, n0, n1, c, c_row);
}

inline void multiply_floats(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  bool in_pairs = p.a_type == Storage::bf16 && (p.b_type == Storage::bf16 || p.round_b_to_bf16);
  if (kPairs && in_pairs) multiply<std::conditional_t<kPairs, Pairs, Singles>>(p, m0, m1, n0, n1, c, c_row);
  else multiply<Singles>(p, m0, m1, n0, n1, c, c_row);
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
  if (p.b_panels == Panels::int8) multiply_integers<Int8>(p, m0, m1, n0, n1, c, c_row);
  else if (p.b_panels == Panels::int4) multiply_integers<Int4>(p, m0, m1, n0, n1, c, c_row);
  else multiply_floats(p, m0, m1, n0, n1, c, c_row);
  if (p.c_type == Storage::bf16)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = 0; j < cols; ++j) static_cast<uint16_t*>(p.c)[(m0 + r) * p.c_row + n0 + j] = to_bf16(c[r * cols + j]);
}

// The whole product on the calling thread, 256 columns at a time: their panels of B stay in the second-level cache.
inline void gemm_serial(const GemmParams& p) {
  for (int64_t n = 0; n < p.N; n += 256) gemm_region(p, 0, p.M, n, std::min(p.N, n + 256));
}

}  // namespace fulgur::FULGUR_ISA
