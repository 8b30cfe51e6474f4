// A vector of floats as wide as the instruction set the file is compiled for. A kernel file is compiled once for each
// set (-DFULGUR_ISA=portable|avx2|avx512|avx512bf16) and puts its code into namespace fulgur::FULGUR_ISA, so no code for a newer
// CPU can be linked into a function an older one runs. FMA is explicit (the build turns contraction off): what rounds
// is what is written. Include only from kernels.cc files and the kernel headers they include.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace fulgur::FULGUR_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecInt __attribute__((vector_size(kLanes * 4)));
typedef uint32_t VecUint __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec load(const float* at) { return *reinterpret_cast<const UnalignedVec*>(at); }
inline void store(float* at, Vec value) { *reinterpret_cast<UnalignedVec*>(at) = value; }
inline Vec splat(float value) { return value - Vec{}; }  // minus, since 0 + (-0) is 0 and would cost an addition

// Stays in its register: GCC would rather read what was loaded again at each use, and loads run out before multiplications do.
inline void keep([[maybe_unused]] Vec& value) {
#if defined(__AVX512F__)
  asm("" : "+v"(value));
#elif defined(__AVX2__)
  asm("" : "+x"(value));
#endif
}

// What is read at `place` from here on is read behind the making of `value`, and not kept from before.
inline void follows([[maybe_unused]] int64_t& place, [[maybe_unused]] const Vec& value) {
#if defined(__AVX512F__)
  asm("" : "+r"(place) : "v"(value));
#elif defined(__AVX2__)
  asm("" : "+r"(place) : "x"(value));
#endif
}

// a * b + c, rounded once where the CPU has FMA.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return reinterpret_cast<Vec>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
  return reinterpret_cast<Vec>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

inline float fma(float a, float b, float c) {
#if defined(__AVX2__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Products of bf16 pairs, two of k in each 32-bit lane: a.low * b.low + a.high * b.high + c, rounded as the instruction does
// (subnormals count as zero). Only the instruction set that has it uses it: its bits are its own.
#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
inline Vec pair_fma(Vec a, Vec b, Vec c) {
  return reinterpret_cast<Vec>(
      _mm512_dpbf16_ps(reinterpret_cast<__m512>(c), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
}
#else
constexpr bool kPairs = false;
inline Vec pair_fma(Vec, Vec, Vec c) { return c; }
#endif

// NaN in `a` gives NaN, so that it cannot hide behind a maximum.
inline Vec max(Vec a, Vec b) { return a < b ? b : a; }
inline Vec min(Vec a, Vec b) { return a > b ? b : a; }

// Lanes are added in a fixed tree, whatever the width: pairs 8 apart, then 4, 2, 1.
inline float sum(Vec value) {
  float lane[kLanes];
  store(lane, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

inline float max_lane(Vec value) {
  float lane[kLanes];
  store(lane, value);
  float best = lane[0];
  for (int i = 1; i < kLanes; ++i) best = best < lane[i] ? lane[i] : best;
  return best;
}

// e^x: 2^n * p(r), a degree-6 polynomial on |r| <= ln2/2; relative error under 2e-7, exact 1 at 0, 0 below -87.3,
// +inf above 88.7, NaN stays NaN.
inline Vec exp(Vec x) {
  Vec n = x * 1.44269504088896341f;
  n = (n + 12582912.0f) - 12582912.0f;  // round to nearest: 1.5 * 2^23
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  VecInt bits = (__builtin_convertvector(min(max(n, splat(-127.0f)), splat(127.0f)), VecInt) + 127) << 23;
  Vec y = p * reinterpret_cast<Vec>(bits);
  y = x < -87.33654f ? Vec{} : y;
  y = x > 88.0f ? splat(INFINITY) : y;
  return x != x ? x : y;  // NaN stays NaN. NOLINT(misc-redundant-expression)
}

inline float exp(float x) { return exp(splat(x))[0]; }

// Natural logarithm of normal positive numbers: e * ln2 + log(m), m in [sqrt(1/2), sqrt(2)); error under 2e-7 relative to the
// larger of the result and 1. Other arguments give no defined result, but NaN stays NaN.
inline Vec log(Vec x) {
  VecInt bits = reinterpret_cast<VecInt>(x);
  VecInt exponent = (bits >> 23) - 126;
  Vec m = reinterpret_cast<Vec>((bits & 0x7fffff) | 0x3f000000);
  VecInt small = m < 0.70710678f;
  exponent += small;  // -1 where true
  m = (small ? m + m : m) - 1.0f;
  Vec e = __builtin_convertvector(exponent, Vec), square = m * m;
  Vec p = splat(7.0376836292e-2f);
  p = fma(p, m, splat(-1.1514610310e-1f));
  p = fma(p, m, splat(1.1676998740e-1f));
  p = fma(p, m, splat(-1.2420140846e-1f));
  p = fma(p, m, splat(1.4249322787e-1f));
  p = fma(p, m, splat(-1.6668057665e-1f));
  p = fma(p, m, splat(2.0000714765e-1f));
  p = fma(p, m, splat(-2.4999993993e-1f));
  p = fma(p, m, splat(3.3333331174e-1f));
  p = p * m * square;
  p = fma(e, splat(-2.12194440e-4f), p);
  p = fma(square, splat(-0.5f), p);
  Vec y = fma(e, splat(0.693359375f), m + p);
  return x != x ? x : y;  // NaN stays NaN. NOLINT(misc-redundant-expression)
}

typedef int32_t UnalignedVecInt __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
inline VecInt load_int(const int32_t* at) { return *reinterpret_cast<const UnalignedVecInt*>(at); }

inline void store_int(int32_t* at, VecInt value) { *reinterpret_cast<UnalignedVecInt*>(at) = value; }

inline VecInt lane_numbers() {
  VecInt out;
  for (int i = 0; i < kLanes; ++i) out[i] = i;
  return out;
}

// Bit i is set where lane i is greater than `than`.
inline uint32_t greater(VecInt value, int32_t than) {
#if defined(__AVX512F__)
  return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(value), _mm512_set1_epi32(than));
#elif defined(__AVX2__)
  auto lanes = _mm256_cmpgt_epi32(reinterpret_cast<__m256i>(value), _mm256_set1_epi32(than));
  return uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
#else
  uint32_t out = 0;
  for (int i = 0; i < kLanes; ++i) out |= uint32_t(value[i] > than) << i;
  return out;
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// order[bits]: the numbers of the set bits, ascending. AVX2 has no compress, but permutes by a table.
struct CompressTable {
  uint8_t order[256][8] = {};
  constexpr CompressTable() {
    for (int bits = 0; bits < 256; ++bits)
      for (int lane = 0, count = 0; lane < 8; ++lane)
        if (bits >> lane & 1) order[bits][count++] = uint8_t(lane);
  }
};
inline constexpr CompressTable kCompress;
#endif

// Stores the lanes whose bits are set one behind another, and may write kLanes elements; returns how many.
inline int compress(int32_t* to, VecInt value, uint32_t lanes) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(__mmask16(lanes), reinterpret_cast<__m512i>(value)));
#elif defined(__AVX2__)
  auto order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kCompress.order[lanes])));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(value), order));
#else
  for (uint32_t left = lanes; left != 0; left &= left - 1) *to++ = value[__builtin_ctz(left)];
#endif
  return __builtin_popcount(lanes);
}

// bf16 is the upper half of an f32; rounding is to nearest even, NaN stays a quiet NaN.
inline float from_bf16(uint16_t value) {
  uint32_t bits = uint32_t(value) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// GCC 12 widens 16 halves by six instructions unless told.
inline Vec from_bf16(const uint16_t* at) {
#if defined(__AVX512F__)
  auto wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return reinterpret_cast<Vec>(_mm512_slli_epi32(wide, 16));
#else
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  return reinterpret_cast<Vec>(__builtin_convertvector(*reinterpret_cast<const Halves*>(at), VecUint) << 16);
#endif
}

// The nearest bf16, as an f32.
inline Vec round_to_bf16(Vec value) {
  VecUint bits = reinterpret_cast<VecUint>(value);
  VecUint rounded = bits + 0x7fff + ((bits >> 16) & 1), quiet = bits | 0x400000;
  bits = (bits & 0x7fffffff) > 0x7f800000u ? quiet : rounded;
  return reinterpret_cast<Vec>(bits & 0xffff0000u);
}

inline void to_bf16(Vec value, uint16_t* at) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 2), aligned(2), may_alias));
  *reinterpret_cast<Halves*>(at) = __builtin_convertvector(reinterpret_cast<VecUint>(round_to_bf16(value)) >> 16, Halves);
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 0x40);
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace fulgur::FULGUR_ISA
