// Products of integers in the tiles of AMX, eight times VNNI's rate: 16 rows by 64 k of A, 64 k by 16 columns of B, sums of
// int32. Sums are exact, so the bits are those of any other way. Part of gemm_kernel.h.
#pragma once

#include "fulgur/ops/linear/gemm_few.h"

namespace fulgur::FULGUR_ISA {

#if defined(__AMX_INT8__)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
constexpr int64_t kTileRows = 16, kTileK = 64, kTileBytes = kTileRows * kTileK;

// Room for so many numbers that begins with a cache line: a tile's rows are lines.
template <class T>
T* lines_of(std::vector<T>& buffer, int64_t count) {
  buffer.resize(std::max<size_t>(buffer.size(), count + 64 / sizeof(T)));
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(buffer.data()) + 63) & ~uintptr_t(63));
}

// The thread's tile registers, all 16 rows of 64 bytes, while it lives.
class Tiles {
#if defined(__AMX_INT8__)
 public:
  Tiles() {
    struct {
      uint8_t palette = 1, start = 0, unused[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    asm volatile("" ::"m"(shape));  // written before it is read
    _tile_loadconfig(&shape);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // 32 keys of 64 or 128 numbers, four of each in a line of `row` bytes: they stay in the registers.
  static void load_keys(const uint8_t* keys, int64_t row, int64_t steps) {
    asm volatile("" ::: "memory");
    _tile_loadd(4, keys, row);
    _tile_loadd(5, keys + 64, row);
    if (steps < 2) return;
    _tile_loadd(6, keys + 16 * row, row);
    _tile_loadd(7, keys + 16 * row + 64, row);
  }
  // sums[2][16 queries][16 keys] with these keys; queries lie `row` bytes apart.
  static void dot_keys(const int8_t* queries, int64_t row, int64_t steps, int32_t* sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(2, queries, row);
    _tile_dpbsud(0, 2, 4);
    _tile_dpbsud(1, 2, 5);
    if (steps == 2) {
      _tile_loadd(3, queries + 64, row);
      _tile_dpbsud(0, 3, 6);
      _tile_dpbsud(1, 3, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
  }

  // sums[i][j][16][16] = rows of strip i (of 1 or 2) by columns of panel j, over `steps` of 64 k. A strip's tiles
  // follow each other, as do a panel's; the second strip and panel lie a_strip and b_panel bytes further.
  static void multiply(const int8_t* a, int64_t a_strip, const uint8_t* b, int64_t b_panel, int64_t steps, int strips,
                       int32_t* sums) {
    asm volatile("" ::: "memory");  // the compiler does not see that tiles read memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < steps; ++i, a += kTileBytes, b += kTileBytes) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + b_panel, 64);
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      if (strips == 1) continue;
      _tile_loadd(5, a + a_strip, 64);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
    _tile_stored(0, sums, 64);
    _tile_stored(1, sums + 256, 64);
    if (strips == 1) return;
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }
#else
 public:
  static void load_keys(const uint8_t*, int64_t, int64_t) {}
  static void dot_keys(const int8_t*, int64_t, int64_t, int32_t*) {}
  static void multiply(const int8_t*, int64_t, const uint8_t*, int64_t, int64_t, int, int32_t*) {}
#endif
};

// Tiles by which a group of k is multiplied.
template <class Format>
constexpr int64_t steps_of() {
  return (Format::kGroup + kTileK - 1) / kTileK;
}

// Rows of A as tiles [strip][group][step][16][64 k], zero behind the last k of a group, and their scales [strip][group][16].
struct TiledRows {
  int8_t* tiles;
  RowScale* scales;
};
template <class Format>
void tile_rows(const GemmParams& p, int64_t m0, int64_t m1, int64_t k0, int64_t K, const TiledRows& to) {
  int64_t groups = (K + Format::kGroup - 1) / Format::kGroup, strip = groups * steps_of<Format>() * kTileBytes;
  for (int64_t m = m0; m < m1; ++m) {
    int64_t row = m - m0;
    const int8_t* from = static_cast<const int8_t*>(p.a) + m * p.a_row + k0;
    int8_t* line = to.tiles + row / kTileRows * strip + row % kTileRows * kTileK;
    for (int64_t g = 0; g < groups; ++g) {
      int64_t k = g * Format::kGroup, end = std::min(K, k + Format::kGroup);
      to.scales[(row / kTileRows * groups + g) * kTileRows + row % kTileRows] = scale_of_row<Format>(p, m, k0 + k);
      for (int64_t step = 0; step < steps_of<Format>(); ++step, k += kTileK, line += kTileBytes) {
        int64_t count = std::clamp<int64_t>(end - k, 0, kTileK);
        std::memcpy(line, from + k, count), std::memset(line + count, 0, kTileK - count);
      }
    }
  }
}

// Two panels of B from column n on, k [k0, k0 + K), as tiles [panel][group][64 k / 4][16][4], and their scales.
template <class Format>
void tile_panels(const GemmParams& p, int64_t n, int panels, int64_t k0, int64_t K, uint8_t* tiles, float* units) {
  constexpr int64_t kGroupBytes = steps_of<Format>() * kTileBytes;
  int64_t groups = (K + Format::kGroup - 1) / Format::kGroup;
  for (int panel = 0; panel < panels; ++panel, n += kPanel)
    for (int64_t g = 0; g < groups; ++g, tiles += kGroupBytes, units += kPanel) {
      int64_t k = g * Format::kGroup;
      unpack_panel<IntQuads, Format>(p, n, k0 + k, std::min(Format::kGroup, K - k), reinterpret_cast<float*>(tiles), kPanel);
      store(units, scales_of<Format>(p, n, k0 + k));
    }
}

// What a product of 32 by 32 came to, [strip][panel][16][16], and its sums of one group.
struct alignas(64) TiledSums {
  float total[4 * kTileRows * kPanel];
  int32_t apart[64];  // 4 KB apart, a load of one would wait for a store of the other
  int32_t sums[4 * kTileRows * kPanel];
};

template <class Format>
void add_tiles(const TiledRows& a, int64_t first, int strips, const uint8_t* b, const float* units, int64_t groups,
               TiledSums& to) {
  constexpr int64_t kGroupBytes = steps_of<Format>() * kTileBytes;
  for (int64_t g = 0; g < groups; ++g) {
    Tiles::multiply(a.tiles + (first * groups + g) * kGroupBytes, groups * kGroupBytes, b + g * kGroupBytes, groups * kGroupBytes,
                    steps_of<Format>(), strips, to.sums);
    Vec unit[2] = {load(units + g * kPanel), load(units + (groups + g) * kPanel)};
    for (int i = 0; i < strips; ++i)
      for (int r = 0; r < kTileRows; ++r) {
        RowScale scale = a.scales[((first + i) * groups + g) * kTileRows + r];
        for (int panel = 0; panel < 2; ++panel) {
          int64_t line = ((i * 2 + panel) * kTileRows + r) * kPanel;
          Vec sums = load(reinterpret_cast<const float*>(to.sums + line));
          store(to.total + line, add_integers(sums, scale, unit[panel], load(to.total + line)));
        }
      }
  }
}

// Many rows, 32 by 32 at a time, over so many k that C is seldom fetched and rows stay in the second-level cache.
template <class Format>
void multiply_tiled_integers(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* c, int64_t c_row) {
  constexpr int64_t kBlock = 2048, kGroups = kBlock / Format::kGroup, kStrip = kGroups * steps_of<Format>() * kTileBytes;
  static thread_local std::vector<int8_t> a_room;
  static thread_local std::vector<uint8_t> b_room;
  static thread_local std::vector<RowScale> scale_room;
  int64_t strips = (m1 - m0 + kTileRows - 1) / kTileRows;
  TiledRows a{lines_of(a_room, strips * kStrip), lines_of(scale_room, strips * kTileRows * kGroups)};
  uint8_t* b = lines_of(b_room, 2 * kStrip);
  float units[2 * kGroups * kPanel] = {};
  TiledSums block;
  [[maybe_unused]] Tiles registers;
  for (int64_t k0 = 0; k0 < p.K; k0 += kBlock) {
    int64_t K = std::min(kBlock, p.K - k0), groups = (K + Format::kGroup - 1) / Format::kGroup;
    tile_rows<Format>(p, m0, m1, k0, K, a);
    for (int64_t n = n0; n < n1; n += 2 * kPanel) {
      int panels = int(std::min<int64_t>(2, (n1 - n) / kPanel));
      tile_panels<Format>(p, n, panels, k0, K, b, units);
      for (int64_t strip = 0; strip < strips; strip += 2) {
        auto each_line = [&](auto&& line) {
          for (int64_t r = 0; r < std::min(2 * kTileRows, m1 - m0 - strip * kTileRows); ++r)
            for (int panel = 0; panel < panels; ++panel)
              line(block.total + ((r / kTileRows * 2 + panel) * kTileRows + r % kTileRows) * kPanel,
                   c + (strip * kTileRows + r) * c_row + n - n0 + panel * kPanel);
        };
        if (k0 > 0 || p.accumulate) each_line([](float* mine, float* theirs) { store(mine, load(theirs)); });
        else std::fill(std::begin(block.total), std::end(block.total), 0.0f);
        add_tiles<Format>(a, strip, int(std::min<int64_t>(2, strips - strip)), b, units, groups, block);
        each_line([](float* mine, float* theirs) { store(theirs, load(mine)); });
      }
    }
  }
}

}  // namespace fulgur::FULGUR_ISA
