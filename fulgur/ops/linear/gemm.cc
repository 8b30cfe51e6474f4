#include "fulgur/ops/linear/gemm.h"

#include <algorithm>
#include <vector>

#include "fulgur/base/threads.h"

namespace fulgur {
namespace {

struct Tile {
  const GemmParams* product;
  int64_t m0, n0, rows, cols;
};

// Tiles large enough to amortise packing, small enough that a weight gradient (small M, N, long K) has several.
void append_tiles(const GemmParams& p, std::vector<Tile>& tiles) {
  int64_t rows = 384, cols = 256;
  auto count = [&] { return ((p.M + rows - 1) / rows) * ((p.N + cols - 1) / cols); };
  while (count() < 8 && cols > 64) cols /= 2;
  while (count() < 8 && rows > 48) rows /= 2;
  // Equal heights: what packing a panel costs is shared by its rows.
  int64_t bands = std::max<int64_t>(1, (p.M + rows - 1) / rows);
  rows = (p.M + bands - 1) / bands;
  rows = (rows + 11) / 12 * 12;
  for (int64_t n0 = 0; n0 < p.N; n0 += cols)
    for (int64_t m0 = 0; m0 < p.M; m0 += rows) tiles.push_back({&p, m0, n0, rows, cols});
}

}  // namespace

void gemm(std::span<const GemmParams> products) {
  std::vector<Tile> tiles;
  for (const auto& product : products) append_tiles(product, tiles);
  auto tile_kernel = FULGUR_CALL(gemm_tile);
  parallel_for(int64_t(tiles.size()), [&](int64_t i) {
    const Tile& t = tiles[i];
    tile_kernel(*t.product, t.m0, std::min(t.product->M, t.m0 + t.rows), t.n0, std::min(t.product->N, t.n0 + t.cols));
  });
}

}  // namespace fulgur
