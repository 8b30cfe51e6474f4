// Row-invariant matrix product on plain pointers: C[M,N] = A[M,K] * B[K,N] (+ C).
//
// Every element is the same chain of operations whatever M, N, the tiling or the number of threads: partial sums over
// blocks of 256 k, each an FMA chain in ascending k from zero, added in ascending order. A row of A therefore gives the
// same bits alone or among others. Integers are summed exactly within a group of k, whose sums are scaled and added in ascending
// order. Cost 2*M*N*K FLOP. Thread-safe.
#pragma once

#include <cstdint>
#include <span>

#include "fulgur/ops/isa.h"

namespace fulgur {

enum class Storage : uint8_t { f32, bf16 };

constexpr int64_t kPanel = 16;  // columns of a packed panel

// How a packed B is stored, in panels of 16 columns.
//   plain  f32 [K, 16], or bf16 [K / 2, 16, 2], whose pairs are two k of one column
//   fp8    e4m3 bytes [K, 16], each value times its group's scale
//   int8   bytes [K / 4, 16, 4], four k of a column side by side, 128 above their value
//   int4   two such lines, 8 above their value, in the halves of one [K / 8, 16, 4]
// The k of the last three come in groups, each with its scales behind it: fp8 one f32, four times; integers 16 bf16, one a
// column.
enum class Panels : uint8_t { none, plain, fp8, int8, int4 };

// A quantised panel in lines of 16 bytes.
struct PanelLayout {
  int64_t group;        // k that share a scale
  int64_t bits;         // of a value
  int64_t scale_lines;  // behind a group
  int64_t multiple;     // of which K must be one

  int64_t data_lines(int64_t k) const { return k * bits / 8; }
  int64_t lines(int64_t K) const { return data_lines(K) + (K + group - 1) / group * scale_lines; }
  int64_t inputs(int64_t lines) const {  // the K of so many lines
    int64_t whole = data_lines(group) + scale_lines, groups = (lines + whole - 1) / whole;
    return (lines - groups * scale_lines) * 8 / bits;
  }
};
constexpr PanelLayout panel_layout(Panels panels) {
  if (panels == Panels::int4) return {32, 4, 2, 32};
  if (panels == Panels::int8) return {128, 8, 2, 4};
  return {128, 8, 1, 2};
}
constexpr int64_t kIntegerGroup = 128;  // k of a row of integers that share a scale
constexpr int kMostOfARow = 63;         // two products with a byte fit in 16 bits
constexpr bool integers(Panels panels) { return panels == Panels::int8 || panels == Panels::int4; }

// 128 integers of a row: what scales them, NaN where one was not finite, and the sums of each 32 of them.
struct IntegerGroup {
  float scale;
  int32_t sums[4];
};

struct GemmParams {
  const void* a;  // [M, K], element (m, k) at a_row * m + a_col * k
  const void* b;  // [K, N], element (k, n) at b_row * k + b_col * n; or packed, see b_panels
  void* c;        // [M, N], element (m, n) at c_row * m + n
  int64_t M, N, K;
  int64_t a_row, a_col, b_row, b_col, c_row;
  Storage a_type = Storage::f32, b_type = Storage::f32, c_type = Storage::f32;
  bool round_b_to_bf16 = false;  // f32 master weights used as bf16: B is rounded as it is read
  bool accumulate = false;       // C += A * B, from the stored C; f32 only
  Panels b_panels = Panels::none;
  // By panels of integers A is int8 of at most +-63 (Rows in weight.h), and a group's scale of these times it is its value.
  const IntegerGroup* a_groups = nullptr;
  int64_t a_groups_row = 0;  // groups from row to row
  // Where B is gathered: its column n is column b_columns[n] of what b points to, or its row k is row b_rows[k].
  const int32_t* b_columns = nullptr;
  const int32_t* b_rows = nullptr;
};

// A row as integers: x[i] is about to[i] * groups[i / 128].scale.
FULGUR_KERNEL(void, integer_row, (const void* x, Storage type, int64_t count, int8_t* to, IntegerGroup* groups))

// On all threads; the products of one call must write to different C.
void gemm(std::span<const GemmParams> products);
inline void gemm(const GemmParams& product) { gemm(std::span(&product, 1)); }

// The tile of rows [m0, m1) and columns [n0, n1), on the calling thread.
FULGUR_KERNEL(void, gemm_tile, (const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1))

}  // namespace fulgur
