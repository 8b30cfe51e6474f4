// Row-invariant matrix product on plain pointers: C[M,N] = A[M,K] * B[K,N] (+ C).
//
// Every element is the same chain of operations whatever M, N, the tiling or the number of threads: partial sums over
// blocks of 256 k, each an FMA chain in ascending k from zero, added in ascending order. A row of A therefore gives the
// same bits alone or among others. Cost 2*M*N*K FLOP. Thread-safe.
#pragma once

#include <cstdint>
#include <span>

#include "fulgur/ops/isa.h"

namespace fulgur {

enum class Storage : uint8_t { f32, bf16 };

constexpr int64_t kPanel = 16;  // columns of a packed panel

struct GemmParams {
  const void* a;  // [M, K], element (m, k) at a_row * m + a_col * k
  const void* b;  // [K, N], element (k, n) at b_row * k + b_col * n; or packed, see b_panels
  void* c;        // [M, N], element (m, n) at c_row * m + n
  int64_t M, N, K;
  int64_t a_row, a_col, b_row, b_col, c_row;
  Storage a_type = Storage::f32, b_type = Storage::f32, c_type = Storage::f32;
  bool round_b_to_bf16 = false;  // f32 master weights used as bf16: B is rounded as it is read
  bool accumulate = false;       // C += A * B, from the stored C; f32 only
  // B is [N / 16, K, 16] in f32, [N / 16, K / 2, 16, 2] in bf16, whose pairs are two k of one column; N and K are multiples.
  bool b_panels = false;
  // Where B is gathered: its column n is column b_columns[n] of what b points to, or its row k is row b_rows[k].
  const int32_t* b_columns = nullptr;
  const int32_t* b_rows = nullptr;
};

// On all threads; the products of one call must write to different C.
void gemm(std::span<const GemmParams> products);
inline void gemm(const GemmParams& product) { gemm(std::span(&product, 1)); }

// The tile of rows [m0, m1) and columns [n0, n1), on the calling thread.
FULGUR_KERNEL(void, gemm_tile, (const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1))

}  // namespace fulgur
