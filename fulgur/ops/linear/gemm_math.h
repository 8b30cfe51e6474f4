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

// Products of integers: a word is four k, unsigned of B and signed of A, summed exactly in an int32 lane that only looks like a
// float. For AVX2 the instructions are one piece: apart, GCC keeps several products waiting and spills sums.
struct IntQuads {
  static constexpr int kPerWord = 4;
  static Vec multiply_add(Vec a, Vec b, Vec c) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<Vec>(
        _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(c), reinterpret_cast<__m512i>(b), reinterpret_cast<__m512i>(a)));
#elif defined(__AVX2__)
    Vec products;
    asm volatile("vpmaddubsw %2, %3, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
                 : "+x"(c), "=&x"(products)
                 : "x"(a), "x"(b), "x"(_mm256_set1_epi16(1)));
    return c;
#else
    auto x = reinterpret_cast<VecInt>(a), sums = reinterpret_cast<VecInt>(c);
    auto y = reinterpret_cast<VecUint>(b);
    for (int byte = 0; byte < 4; ++byte)
      sums += ((x << (24 - 8 * byte)) >> 24) * reinterpret_cast<VecInt>((y << (24 - 8 * byte)) >> 24);
    return reinterpret_cast<Vec>(sums);
#endif
  }
};

// What was summed, as floats; B's values were `offset` more, which A's sum over the same k takes off.
inline Vec sums_of_integers(Vec acc, int32_t offset_sum) {
  return __builtin_convertvector(reinterpret_cast<VecInt>(acc) - offset_sum, Vec);
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
  float unit = 0;  // of small_e4m3
  void start(const GemmParams& p, int64_t n, int64_t k) {
    at = group_of<kPanels>(p, n, k);
    std::memcpy(&unit, behind_group<kPanels>(p, n, k), sizeof unit);
    unit *= 0x1p120f;  // pack() saw to it that this is finite
  }
  Vec value(int64_t i) const { return small_e4m3(at + i) * unit; }
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
  static constexpr int kLines = 1, kOffset = 128;
  static constexpr Panels kPanels = Panels::int8;
  static constexpr int64_t kGroup = panel_layout(kPanels).group;
  const uint8_t* at = nullptr;
  void start(const GemmParams& p, int64_t n, int64_t k) { at = group_of<kPanels>(p, n, k); }
  template <class Math>
  void read(Vec (&words)[kLines][kPanel / kLanes]) {
#pragma GCC unroll 2
    for (int part = 0; part < kPanel / kLanes; ++part) words[0][part] = load(reinterpret_cast<const float*>(at) + part * kLanes);
    at += 4 * kPanel;
  }
};
struct Int4 {
  static constexpr bool kIntegers = true;
  static constexpr int kLines = 2, kOffset = 8;
  static constexpr Panels kPanels = Panels::int4;
  static constexpr int64_t kGroup = panel_layout(kPanels).group;
  const uint8_t* at = nullptr;
  void start(const GemmParams& p, int64_t n, int64_t k) { at = group_of<kPanels>(p, n, k); }
  template <class Math>
  void read(Vec (&words)[kLines][kPanel / kLanes]) {
#pragma GCC unroll 2
    for (int part = 0; part < kPanel / kLanes; ++part) {
      auto both = reinterpret_cast<VecUint>(load(reinterpret_cast<const float*>(at) + part * kLanes));
      words[0][part] = reinterpret_cast<Vec>(both & 0x0f0f0f0fu);
      words[1][part] = reinterpret_cast<Vec>((both >> 4) & 0x0f0f0f0fu);
    }
    at += 4 * kPanel;
  }
};

// Scales of columns [n, n + kLanes) of a panel of integers.
template <class Format>
inline Vec scales_of(const GemmParams& p, int64_t n, int64_t k) {
  return from_bf16(reinterpret_cast<const uint16_t*>(behind_group<Format::kPanels>(p, n, k)) + n % kPanel);
}

// What the integers of row m in the format's group of k are scaled by, and what they add to a sum because B's are offset.
struct RowScale {
  float scale;
  int32_t offset;
};
template <class Format>
inline RowScale scale_of_row(const GemmParams& p, int64_t m, int64_t k) {
  const IntegerGroup& row = p.a_groups[m * p.a_groups_row + k / kIntegerGroup];
  int32_t sum = row.sums[k % kIntegerGroup / 32];
  for (int i = 1; i < Format::kGroup / 32; ++i) sum += row.sums[i];
  return {row.scale, Format::kOffset * sum};
}

// total + a row's sums over a group of k, scaled.
inline Vec add_integers(Vec sums, RowScale row, Vec b_scale, Vec total) {
  return fma(sums_of_integers(sums, row.offset), b_scale * row.scale, total);
}
template <class Format>
inline Vec add_integers(const GemmParams& p, int64_t m, int64_t k, Vec sums, Vec b_scale, Vec total) {
  return add_integers(sums, scale_of_row<Format>(p, m, k), b_scale, total);
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
