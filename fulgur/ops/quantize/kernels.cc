#include "fulgur/ops/quantize/kernels.h"

#include <algorithm>
#include <cmath>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));

Vec magnitude(Vec x) { return reinterpret_cast<Vec>(reinterpret_cast<VecUint>(x) & 0x7fffffff); }

// e4m3fn: 4 exponent bits with bias 7, 3 mantissa bits, no infinity; the largest value is 448. To nearest even.
VecUint encode(Vec x) {
  VecUint sign = (reinterpret_cast<VecUint>(x) >> 24) & 0x80;
  Vec size = min(magnitude(x), splat(448.0f));
  VecUint bits = reinterpret_cast<VecUint>(size);
  // A carry out of the mantissa moves into the exponent by itself; 120 lies between the two biases.
  VecUint normal = ((bits + 0x7ffff + ((bits >> 20) & 1)) >> 20) - (120 << 3);
  // Below 2^-6 codes count steps of 2^-9, the distance between floats from 2^14 on.
  VecUint subnormal = reinterpret_cast<VecUint>(size + 0x1p14f) - 0x46800000u;
  VecUint code = sign | (size < 0x1p-6f ? subnormal : normal);
  return x == x ? code : VecUint{} + 0x7f;  // NOLINT(misc-redundant-expression): NaN
}

Vec decode(VecUint code) {
  VecUint size = code & 0x7f;
  Vec subnormal = __builtin_convertvector(reinterpret_cast<VecInt>(size), Vec) * 0x1p-9f;
  Vec value = size < 8u ? subnormal : reinterpret_cast<Vec>((size << 20) + (120u << 23));
  value = reinterpret_cast<Vec>(reinterpret_cast<VecUint>(value) | (code & 0x80) << 24);
  return size == 0x7fu ? splat(NAN) : value;
}

// Between bytes and lanes: for AVX2 GCC's __builtin_convertvector would move them one by one.
VecUint widen(Bytes bytes) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return reinterpret_cast<VecUint>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(&bytes))));
#else
  return __builtin_convertvector(bytes, VecUint);
#endif
}

// The lowest byte of each lane.
Bytes narrow(VecUint code) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  auto quads = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(code), _mm256_set1_epi32(0x0c080400));
  auto pairs = _mm_unpacklo_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
  Bytes bytes;
  _mm_storel_epi64(reinterpret_cast<__m128i*>(&bytes), pairs);
  return bytes;
#else
  return __builtin_convertvector(code, Bytes);
#endif
}

void write_bytes(uint8_t* to, int64_t count, VecUint code) {
  Bytes bytes = narrow(code);
  if (count >= kLanes) *reinterpret_cast<Bytes*>(to) = bytes;
  else
    for (int64_t i = 0; i < count; ++i) to[i] = bytes[i];
}

VecUint read_bytes(const uint8_t* from, int64_t count) {
  Bytes bytes{};
  if (count >= kLanes) bytes = *reinterpret_cast<const Bytes*>(from);
  else
    for (int64_t i = 0; i < count; ++i) bytes[i] = from[i];
  return widen(bytes);
}

// Lanes of the largest magnitudes so far and of x[at, at + count); NaN does not count.
Vec largest(const void* x, Storage type, int64_t at, int64_t count, Vec so_far) {
  for_vectors(count, [&](int64_t i, int64_t n) { so_far = max(so_far, magnitude(read(x, type, at + i, n))); });
  return so_far;
}

float scale_of(float amax, float floor, bool pow2) {
  float scale = std::max(amax, floor) * (1.0f / 448.0f);
  if (!pow2) return scale;
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  bits = (bits + 0x7fffff) & 0x7f800000;  // up to a power of two
  std::memcpy(&scale, &bits, 4);
  return scale;
}

// Sums and differences of lanes `half` apart.
Vec butterfly(Vec x, VecInt lane, int half) {
  Vec other = __builtin_shuffle(x, lane ^ half);
  VecInt flip = (lane & half) != 0;
  return other + reinterpret_cast<Vec>(reinterpret_cast<VecInt>(x) ^ (flip & INT32_MIN));
}

}  // namespace

void e4m3_encode(const float* x, int64_t count, uint8_t* bytes) {
  for_vectors(count, [&](int64_t i, int64_t n) { write_bytes(bytes + i, n, encode(read(x, Storage::f32, i, n))); });
}

void e4m3_decode(const uint8_t* bytes, int64_t count, float* x) {
  for_vectors(count, [&](int64_t i, int64_t n) { write(x, Storage::f32, i, n, decode(read_bytes(bytes + i, n))); });
}

void quantize_band(const QuantizeParams& p, int64_t band) {
  int64_t first = band * p.high, last = std::min(p.R, first + p.high);
  float* scale = p.scales + band * ((p.C + kQuantizeGroup - 1) / kQuantizeGroup);
  for (int64_t c = 0; c < p.C; c += kQuantizeGroup, ++scale) {
    int64_t width = std::min(p.C - c, kQuantizeGroup);
    Vec top{};
    for (int64_t row = first; row < last; ++row) top = largest(p.x, Storage::f32, row * p.C + c, width, top);
    float unit = *scale = scale_of(max_lane(top), p.floor, p.pow2);
    for (int64_t row = first; row < last; ++row) {
      const float* x = p.x + row * p.C + c;
      uint8_t* bytes = p.bytes + row * p.C + c;
      for_vectors(width, [=](int64_t i, int64_t n) { write_bytes(bytes + i, n, encode(read(x, Storage::f32, i, n) / unit)); });
    }
  }
}

void dequantize_row(const DequantizeParams& p, int64_t row) {
  const float* scale = p.scales + row / p.high * ((p.C + kQuantizeGroup - 1) / kQuantizeGroup);
  for (int64_t c = 0; c < p.C; c += kQuantizeGroup, ++scale) {
    const uint8_t* bytes = p.bytes + row * p.C + c;
    float *x = p.x + row * p.C + c, unit = *scale;
    for_vectors(std::min(p.C - c, kQuantizeGroup),
                [=](int64_t i, int64_t n) { write(x, Storage::f32, i, n, decode(read_bytes(bytes + i, n)) * unit); });
  }
}

void simulate_fp8_row(const void* x, void* y, Storage type, int64_t C) {
  for (int64_t c = 0; c < C; c += kQuantizeGroup) {
    int64_t width = std::min(C - c, kQuantizeGroup);
    float scale = scale_of(max_lane(largest(x, type, c, width, Vec{})), 1e-4f, true);
    for_vectors(width,
                [=](int64_t i, int64_t n) { write(y, type, c + i, n, decode(encode(read(x, type, c + i, n) / scale)) * scale); });
  }
}

void hadamard_rows(const float* x, float* y, int64_t rows, int64_t n) {
  float unit = 1 / std::sqrt(float(n));
  VecInt lane = lane_numbers();
  int64_t size = rows * n;
  for_vectors(size, [=](int64_t i, int64_t count) {
    Vec value = read(x, Storage::f32, i, count);
    if (n > 1) value = butterfly(value, lane, 1);  // spelled out: a constant pattern is a cheap shuffle
    if (n > 2) value = butterfly(value, lane, 2);
    if (n > 4) value = butterfly(value, lane, 4);
    if (n > 8 && kLanes > 8) value = butterfly(value, lane, 8);
    write(y, Storage::f32, i, count, n > kLanes ? value : value * unit);
  });
  for (int64_t half = kLanes; half < n; half *= 2)
    for (int64_t start = 0; start < size; start += 2 * half)
      for (int64_t j = start; j < start + half; j += kLanes) {
        Vec a = load(y + j), b = load(y + j + half), sum = a + b, difference = a - b;
        bool last = 2 * half == n;
        store(y + j, last ? sum * unit : sum);
        store(y + j + half, last ? difference * unit : difference);
      }
}

}  // namespace fulgur::FULGUR_ISA
