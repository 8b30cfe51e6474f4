#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

constexpr int64_t kQuantizeGroup = 128;  // columns that share a scale

struct QuantizeParams {
  const float* x;  // [R, C]
  uint8_t* bytes;  // [R, C]
  float* scales;   // [ceil(R / high), ceil(C / 128)]
  int64_t R, C;
  int64_t high;  // rows that share a scale: a band
  float floor;   // of a group's largest magnitude
  bool pow2;
};

struct DequantizeParams {
  const uint8_t* bytes;
  const float* scales;
  float* x;
  int64_t R, C, high;
};

FULGUR_KERNEL(void, e4m3_encode, (const float* x, int64_t count, uint8_t* bytes))
FULGUR_KERNEL(void, e4m3_decode, (const uint8_t* bytes, int64_t count, float* x))
FULGUR_KERNEL(void, quantize_band, (const QuantizeParams&, int64_t band))
FULGUR_KERNEL(void, dequantize_row, (const DequantizeParams&, int64_t row))
// One row of C elements through e4m3 and back, with a scale (pow2) for each group.
FULGUR_KERNEL(void, simulate_fp8_row, (const void* x, void* y, Storage type, int64_t C))
// Rows of n numbers, n a power of two: y = x H / sqrt(n).
FULGUR_KERNEL(void, hadamard_rows, (const float* x, float* y, int64_t rows, int64_t n))

}  // namespace fulgur
