// Products of few rows, part of gemm_kernel.h: what they read of B they use a few times only, so it is read where it lies.
#pragma once

#include "fulgur/ops/linear/gemm_panels.h"

namespace fulgur::FULGUR_ISA {

// acc[r][j] += sum of row[r][k] * B[k][j] over k in [first, end), ascending; lane j of turned[i] is the i-th 32 bits of line j
// from `first` on.
template <int Rows, class Math, class T>
inline void multiply_square(const float* const (&row)[Rows], int64_t first, int64_t end, const Vec (&turned)[kLanes],
                            Vec (&acc)[Rows]) {
  constexpr int kPerLane = kTwoInALane<Math, T> ? 2 : 1;
  int64_t word = first / Math::kPerWord, depth = words_of<Math>(end - first);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i * kPerLane >= depth) break;
    auto bits = reinterpret_cast<VecUint>(turned[i]);
    Vec low = kPerLane == 2 ? reinterpret_cast<Vec>(bits << 16) : turned[i];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) acc[r] = Math::multiply_add(splat(row[r][word + i * kPerLane]), low, acc[r]);
    if (kPerLane == 1 || i * kPerLane + 1 >= depth) continue;
    Vec high = reinterpret_cast<Vec>(bits & 0xffff0000u);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) acc[r] = Math::multiply_add(splat(row[r][word + i * kPerLane + 1]), high, acc[r]);
  }
}

// kLanes lines of B from k on, zeros behind `end`, turned.
template <class Math, class T>
inline void turn_lines(const T* const (&line)[kLanes], int64_t k, int64_t end, bool round, Vec (&turned)[kLanes]) {
  constexpr int64_t kStep = (kTwoInALane<Math, T> ? 2 : Math::kPerWord) * kLanes;
  auto words = [&](const T* at) {
    if constexpr (kTwoInALane<Math, T>) return load(reinterpret_cast<const float*>(at));
    else return load_words<Math>(at, round);
  };
  if (k + kStep <= end) {
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) turned[i] = words(line[i] + k);
  } else {
    for (int i = 0; i < kLanes; ++i) {
      T part[kStep] = {};
      std::copy(line[i] + k, line[i] + end, part);
      turned[i] = words(part);
    }
  }
  transpose(turned);
}

// Up to `Rows` rows of A by columns [n0, n1) of B, which is contiguous in k: each weight is read once, where it lies, and
// turned in registers; packing it would cost more than the product does.
template <int Rows, class Math, class T>
void multiply_lines(const GemmParams& p, const float* const (&row)[Rows], int rows, int64_t n0, int64_t n1, float* c,
                    int64_t c_row) {
  constexpr int64_t kStep = (kTwoInALane<Math, T> ? 2 : Math::kPerWord) * kLanes;
  for (int64_t n = n0; n < n1; n += kLanes, c += kLanes) {
    int cols = int(std::min<int64_t>(kLanes, n1 - n));
    const T* line[kLanes];
    for (int i = 0; i < kLanes; ++i) line[i] = static_cast<const T*>(p.b) + column_of_b(p, i < cols ? n + i : n);
    Vec total[Rows] = {}, turned[kLanes];
    for (int r = 0; p.accumulate && r < rows; ++r) std::memcpy(&total[r], c + r * c_row, cols * sizeof(float));
    // Out of memory the next lines would begin cold: those of bf16 are too short for the hardware to foresee.
    int64_t ahead = sizeof(T) == 4 || p.b_columns || n + kLanes >= n1 ? 0 : kLanes * p.b_col;
    auto step = [&](int64_t k, int64_t end, Vec(&acc)[Rows]) {
      if (ahead > 0 && k * int64_t(sizeof(T)) % 64 == 0)
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) __builtin_prefetch(line[i] + k + ahead, 0, 2);
      turn_lines<Math>(line, k, end, p.round_b_to_bf16, turned);
      multiply_square<Rows, Math, T>(row, k, end, turned, acc);
    };
    auto add = [&](int64_t k0, const Vec(&acc)[Rows]) {
      for (int r = 0; r < Rows; ++r) total[r] = k0 > 0 || p.accumulate ? total[r] + acc[r] : acc[r];
    };
    int64_t k0 = 0;
    // Alone, a row's one chain of FMAs waits for itself: two blocks' chains at once.
    for (; Rows == 1 && kTwoInALane<Math, T> && k0 + 2 * kGemmK <= p.K; k0 += 2 * kGemmK) {
      Vec first[Rows] = {}, second[Rows] = {};
      for (int64_t k = k0; k < k0 + kGemmK; k += kStep) {
        step(k, k + kStep, first);
        step(k + kGemmK, k + kGemmK + kStep, second);
      }
      add(k0, first);
      add(k0 + kGemmK, second);
    }
    for (; k0 < p.K; k0 += kGemmK) {
      Vec acc[Rows] = {};
      int64_t k = k0, end = std::min<int64_t>(p.K, k0 + kGemmK);
      for (; k + kStep <= end; k += kStep) step(k, k + kStep, acc);
      if (k < end) step(k, end, acc);
      add(k0, acc);
    }
    for (int r = 0; r < rows; ++r) std::memcpy(c + r * c_row, &total[r], cols * sizeof(float));
  }
}

// Words of packed columns as they are read one after the other: kLines of them at once, those of one k each, or of a pair.
template <class Math, class T>
struct PlainWords {
  static constexpr bool kQuantised = false;
  static constexpr int kLines = kTwoInALane<Math, T> ? 2 : 1;
  static constexpr int64_t kBlock = kGemmK, kGroup = kGemmK;  // of k: one chain of sums, and where start() is called
  static constexpr int64_t kStep = kLines * Math::kPerWord;   // of k: what is read at once
  const float* at = nullptr;
  void start(const GemmParams& p, int64_t n, int64_t k) { at = panel_words<T>(p, n) + k / kStep * kPanel; }
  void prefetch(const GemmParams& p, int64_t panels) const { __builtin_prefetch(at + panels * p.K / kStep * kPanel, 0, 2); }
  void read(Vec (&words)[kLines][kPanel / kLanes]) {
#pragma GCC unroll 2
    for (int part = 0; part < kPanel / kLanes; ++part) {
      words[0][part] = load(at + part * kLanes);
      auto bits = reinterpret_cast<VecUint>(words[0][part]);
      if constexpr (kLines == 2) {
        words[0][part] = reinterpret_cast<Vec>(bits << 16);
        words[1][part] = reinterpret_cast<Vec>(bits & 0xffff0000u);
      }
    }
    at += kPanel;
  }
};
template <class Math, class Format>
struct FormatWords : Format {
  static constexpr bool kQuantised = true;
  static constexpr int64_t kBlock = Format::kIntegers ? Format::kGroup : kGemmK;
  static constexpr int64_t kStep = Format::kLines * Math::kPerWord;
  void prefetch(const GemmParams& p, int64_t panels) const {
    __builtin_prefetch(this->at + panels * kPanel * panel_layout(Format::kPanels).lines(p.K), 0, 2);
  }
  void read(Vec (&words)[Format::kLines][kPanel / kLanes]) { Format::template read<Math>(words); }
};

// Up to `Rows` rows of A, from m on, by as many packed panels of B at once: so many streams memory serves better than one, and so
// many chains of sums do not wait for themselves.
template <int Rows, int Panels, class Math, class Words>
void stream_panels(const GemmParams& p, const float* const (&row)[Rows], int64_t m, int rows, int64_t n, float* c,
                   int64_t c_row) {
  constexpr int kParts = kPanel / kLanes, kVecs = Panels * kParts, kLines = Words::kLines;
  bool more = Panels < 4 && n + Panels * kPanel < p.N;  // panels to come, which few streams leave cold
  Vec total[Rows][kVecs] = {};
  for (int r = 0; p.accumulate && r < rows; ++r) std::memcpy(total[r], c + r * c_row, sizeof total[r]);
  Words words[Panels];
  for (int64_t k0 = 0; k0 < p.K; k0 += Words::kBlock) {
    Vec acc[Panels][Rows][kParts];
#pragma GCC unroll 16
    for (int i = 0; i < Panels * Rows * kParts; ++i) acc[i / (Rows * kParts)][i / kParts % Rows][i % kParts] = Vec{};
    int64_t block_end = std::min<int64_t>(p.K, k0 + Words::kBlock);
    for (int64_t k = k0; k < block_end; k += Words::kGroup) {
#pragma GCC unroll 4
      for (int i = 0; i < Panels; ++i) words[i].start(p, n + i * kPanel, k);
      int64_t end = std::min<int64_t>(block_end, k + Words::kGroup) / Math::kPerWord;
      for (int64_t word = k / Math::kPerWord; word < end; word += kLines)
#pragma GCC unroll 4
        for (int i = 0; i < Panels; ++i) {
          if (more) words[i].prefetch(p, Panels);
          Vec lines[kLines][kParts];
          words[i].read(lines);
#pragma GCC unroll 16
          for (int j = 0; j < kLines * Rows; ++j) {
            int r = j % Rows, line = j / Rows;
            Vec value = splat(row[r][word + line]);
#pragma GCC unroll 2
            for (int part = 0; part < kParts; ++part)
              acc[i][r][part] = Math::multiply_add(value, lines[line][part], acc[i][r][part]);
          }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        const Vec& sum = acc[v / kParts][r][v % kParts];
        if constexpr (std::is_same_v<Math, IntQuads>) {
          Vec unit = scales_of<Words>(p, n + v * kLanes, k0);
          total[r][v] = add_integers<Words>(p, m + std::min(r, rows - 1), k0, sum, unit, total[r][v]);
        } else total[r][v] = k0 > 0 || p.accumulate ? total[r][v] + sum : sum;
      }
  }
  for (int r = 0; r < rows; ++r) std::memcpy(c + r * c_row, total[r], sizeof total[r]);
}

template <int Rows, class Math, class Words>
void multiply_packed(const GemmParams& p, const float* const (&row)[Rows], int64_t m, int rows, int64_t n0, int64_t n1, float* c,
                     int64_t c_row) {
  if constexpr (Rows > 4) {  // more chains than registers: a panel is read for four rows at a time, out of memory but once
    for (int64_t n = n0; n < n1; n += kPanel)
      for (int r = 0; r < rows; r += 4) {
        const auto& four = reinterpret_cast<const float* const(&)[4]>(row[r]);
        stream_panels<4, 1, Math, Words>(p, four, m + r, std::min(4, rows - r), n, c + r * c_row + n - n0, c_row);
      }
  } else {
    // What unpacks a format takes registers.
    constexpr int kPanels = Words::kQuantised ? (Rows < 4 ? 2 : 1) : 4 / Rows;
    int64_t n = n0;
    for (; n + kPanels * kPanel <= n1; n += kPanels * kPanel)
      stream_panels<Rows, kPanels, Math, Words>(p, row, m, rows, n, c + n - n0, c_row);
    for (; n < n1; n += kPanel) stream_panels<Rows, 1, Math, Words>(p, row, m, rows, n, c + n - n0, c_row);
  }
}

template <int Rows, class Math>
void multiply_few(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  static thread_local std::vector<float> copied;
  int rows = int(m1 - m0);
  bool as_it_lies = lies_in_words<Math>(p);
  int64_t stride = words_of<Math>(p.K);
  if (!as_it_lies) {
    copied.resize(std::max<size_t>(copied.size(), rows * stride));
    if constexpr (Math::kPerWord == 2) pair_a(p, m0, rows, 0, p.K, stride, copied.data());
    else if (p.a_type == Storage::f32)
      widen_lines(static_cast<const float*>(p.a) + m0 * p.a_row, p.a_row, p.a_col, rows, p.K, copied.data(), stride);
    else widen_lines(static_cast<const uint16_t*>(p.a) + m0 * p.a_row, p.a_row, p.a_col, rows, p.K, copied.data(), stride);
  }
  const float* row[Rows];  // rows that are not there repeat the last, and are not stored
  for (int r = 0; r < Rows; ++r) {
    int at = std::min(r, rows - 1);
    row[r] = as_it_lies ? words_at<Math>(p, m0 + at, 0) : copied.data() + at * stride;
  }
  auto by = [&](auto type) {
    using T = decltype(type);
    if (p.b_panels == Panels::fp8) multiply_packed<Rows, Math, FormatWords<Math, Fp8>>(p, row, m0, rows, n0, n1, c, c_row);
    else if (p.b_panels == Panels::plain) multiply_packed<Rows, Math, PlainWords<Math, T>>(p, row, m0, rows, n0, n1, c, c_row);
    else if constexpr (Rows <= 8) multiply_lines<Rows, Math, T>(p, row, rows, n0, n1, c, c_row);
  };
  if (p.b_type == Storage::f32) by(float{});
  else by(uint16_t{});
}

}  // namespace fulgur::FULGUR_ISA
