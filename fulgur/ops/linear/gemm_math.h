// How products multiply, and how panels in quantised formats (gemm.h) become the words they multiply. Part of gemm_kernel.h.
#pragma once

#include <algorithm>
#include <type_traits>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {

// A word is what one 32-bit lane holds: one k in f32, or two in bf16 where the CPU multiplies pairs.
struct Singles {
  static constexpr int kPerWord = 1;
  static Vec multiply_add(Vec a, Vec b, Vec c) { return fma(a, b, c); }
};
struct Pairs {
  static constexpr int kPerWord = 2;
  static Vec multiply_add(Vec a, Vec b, Vec c) { return pair_fma(a, b, c); }
};
template <class Math>
constexpr int64_t words_of(int64_t K) {
  return (K + Math::kPerWord - 1) / Math::kPerWord;
}

typedef int16_t Shorts __attribute__((vector_size(kLanes * 4)));  // two k in each lane

// Products of integers: sums of pairs in int32 lanes, which only look like floats. For AVX2 both instructions are one piece:
// apart, GCC keeps several products waiting and spills sums.
struct IntPairs {
  static constexpr int kPerWord = 2;
  static Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    auto products = _mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b));
    return reinterpret_cast<Vec>(_mm512_add_epi32(reinterpret_cast<__m512i>(c), products));
#elif defined(__AVX2__)
    Vec products;
    asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(c), "=&x"(products) : "x"(a), "x"(b));
    return c;
#else
    auto x = reinterpret_cast<VecInt>(a), y = reinterpret_cast<VecInt>(b);
    return reinterpret_cast<Vec>(reinterpret_cast<VecInt>(c) + ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16));
#endif
  }
};

// What was summed, as floats.
template <class Math>
inline Vec sums_of(Vec acc) {
  if constexpr (std::is_same_v<Math, IntPairs>) return __builtin_convertvector(reinterpret_cast<VecInt>(acc), Vec);
  else return acc;
}

// total + the sums of integers of row m over a group of k, scaled.
inline Vec add_integers(const GemmParams& p, int64_t m, int64_t k, Vec sums, Vec b_scale, Vec total) {
  return fma(sums_of<IntPairs>(sums), b_scale * p.a_scales[m * p.a_scales_row + k / kIntegerGroup], total);
}

// Bytes as shorts, with their sign or without. For AVX2 GCC's __builtin_convertvector would move them one by one.
template <class Byte>
inline Shorts widen_bytes(const Byte* at) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  auto bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return reinterpret_cast<Shorts>(std::is_signed_v<Byte> ? _mm256_cvtepi8_epi16(bytes) : _mm256_cvtepu8_epi16(bytes));
#else
  typedef Byte Bytes __attribute__((vector_size(2 * kLanes), aligned(1), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Bytes*>(at), Shorts);
#endif
}

// e4m3 values times 2^-120, as floats are laid out; NaN, which no weight is, becomes 480.
inline Vec small_e4m3(const uint8_t* at) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  auto bytes = reinterpret_cast<VecInt>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes), aligned(1), may_alias));
  VecInt bytes = __builtin_convertvector(*reinterpret_cast<const Bytes*>(at), VecInt);
#endif
  return reinterpret_cast<Vec>(((bytes << 24) >> 4) & int32_t(0x87f00000u));
}

// Where the group of k begins that input k of column n belongs to; k is its first. And what lies behind its values.
template <Panels panels>
inline const uint8_t* group_of(const GemmParams& p, int64_t n, int64_t k) {
  constexpr PanelLayout layout = panel_layout(panels);
  return static_cast<const uint8_t*>(p.b) + kPanel * (n / kPanel * layout.lines(p.K) + layout.lines(k));
}
template <Panels panels>
inline const uint8_t* behind_group(const GemmParams& p, int64_t n, int64_t k) {
  constexpr PanelLayout layout = panel_layout(panels);
  return group_of<panels>(p, n, k) + kPanel * layout.data_lines(std::min(layout.group, p.K - k));
}

// The words of a panel's group, read one after the other, `kLines` at once.
struct Fp8 {
  static constexpr bool kIntegers = false;
  static constexpr int kLines = 1;
  static constexpr Panels kPanels = Panels::fp8;
  static constexpr int64_t kGroup = panel_layout(kPanels).group;
  const uint8_t* at = nullptr;
  float scale = 0;
  void start(const GemmParams& p, int64_t n, int64_t k) {
    at = group_of<kPanels>(p, n, k);
    std::memcpy(&scale, behind_group<kPanels>(p, n, k), sizeof scale);
  }
  Vec value(int64_t i) const { return small_e4m3(at + i) * 0x1p120f * scale; }
  template <class Math>
  void read(Vec (&words)[kLines][kPanel / kLanes]) {
#pragma GCC unroll 2
    for (int part = 0; part < kPanel / kLanes; ++part) {
      words[0][part] = value(part * kLanes);
      if constexpr (Math::kPerWord == 2) {
        auto low = reinterpret_cast<VecUint>(words[0][part]), high = reinterpret_cast<VecUint>(value(kPanel + part * kLanes));
        words[0][part] = reinterpret_cast<Vec>((low >> 16) | high);
      }
    }
    at += Math::kPerWord * kPanel;
  }
};
struct Int8 {
  static constexpr bool kIntegers = true;
  static constexpr int kLines = 1;
  static constexpr Panels kPanels = Panels::int8;
  static constexpr int64_t kGroup = panel_layout(kPanels).group;
  const uint8_t* at = nullptr;
  void start(const GemmParams& p, int64_t n, int64_t k) { at = group_of<kPanels>(p, n, k); }
  template <class Math>
  void read(Vec (&words)[kLines][kPanel / kLanes]) {
#pragma GCC unroll 2
    for (int part = 0; part < kPanel / kLanes; ++part)
      words[0][part] = reinterpret_cast<Vec>(widen_bytes(reinterpret_cast<const int8_t*>(at) + 2 * part * kLanes));
    at += 2 * kPanel;
  }
};
struct Int4 {
  static constexpr bool kIntegers = true;
  static constexpr int kLines = 2;
  static constexpr Panels kPanels = Panels::int4;
  static constexpr int64_t kGroup = panel_layout(kPanels).group;
  const uint8_t* at = nullptr;
  void start(const GemmParams& p, int64_t n, int64_t k) { at = group_of<kPanels>(p, n, k); }
  template <class Math>
  void read(Vec (&words)[kLines][kPanel / kLanes]) {
#pragma GCC unroll 2
    for (int part = 0; part < kPanel / kLanes; ++part) {
      Shorts both = widen_bytes(at + 2 * part * kLanes);
      words[0][part] = reinterpret_cast<Vec>((both & 15) - 8);
      words[1][part] = reinterpret_cast<Vec>((both >> 4) - 8);
    }
    at += 2 * kPanel;
  }
};

// Scales of columns [n, n + kLanes) of a panel of integers.
template <class Format>
inline Vec scales_of(const GemmParams& p, int64_t n, int64_t k) {
  return from_bf16(reinterpret_cast<const uint16_t*>(behind_group<Format::kPanels>(p, n, k)) + n % kPanel);
}

// The panel of column n, rows [k0, k0 + K), into lines of words `stride` apart.
template <class Math, class Format>
void unpack_panel(const GemmParams& p, int64_t n, int64_t k0, int64_t K, float* to, int64_t stride) {
  for (int64_t k = k0; k < k0 + K; k += Format::kGroup) {
    Format words;
    words.start(p, n, k);
    int64_t count = words_of<Math>(std::min(Format::kGroup, k0 + K - k));
    for (int64_t word = 0; word < count; word += Format::kLines) {
      Vec lines[Format::kLines][kPanel / kLanes];
      words.template read<Math>(lines);
#pragma GCC unroll 2
      for (int line = 0; line < Format::kLines; ++line, to += stride)
#pragma GCC unroll 2
        for (int part = 0; part < kPanel / kLanes; ++part) store(to + part * kLanes, lines[line][part]);
    }
  }
}

}  // namespace fulgur::FULGUR_ISA
