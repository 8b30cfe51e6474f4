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

// As large as may be, since what packing costs is shared by a tile's rows and columns, but at least `least` of them.
void append_tiles(const GemmParams& p, int64_t least, std::vector<Tile>& tiles) {
  int64_t rows = std::min<int64_t>(384, p.M), cols = std::min<int64_t>(256, p.N);
  auto count = [&] { return ((p.M + rows - 1) / rows) * ((p.N + cols - 1) / cols); };
  while (count() < least && (rows >= 96 || cols >= 128)) {
    if (cols < 128 || (rows > cols && rows >= 96)) rows = (rows + 1) / 2;
    else cols = (cols / 2 + 15) / 16 * 16;
  }
  // Equal heights, a multiple of a panel's.
  int64_t bands = (p.M + rows - 1) / rows;
  rows = ((p.M + bands - 1) / bands + 11) / 12 * 12;
  for (int64_t n0 = 0; n0 < p.N; n0 += cols)
    for (int64_t m0 = 0; m0 < p.M; m0 += rows) tiles.push_back({&p, m0, n0, rows, cols});
}

}  // namespace

void gemm(std::span<const GemmParams> products) {
  std::vector<Tile> tiles;
  int64_t least = std::max<int64_t>(2, 4 * threads() / std::max<int64_t>(1, std::ssize(products)));
  for (const auto& product : products)
    if (product.M > 0 && product.N > 0) append_tiles(product, least, tiles);
  auto tile_kernel = FULGUR_CALL(gemm_tile);
  parallel_for(int64_t(tiles.size()), [&](int64_t i) {
    const Tile& t = tiles[i];
    tile_kernel(*t.product, t.m0, std::min(t.product->M, t.m0 + t.rows), t.n0, std::min(t.product->N, t.n0 + t.cols));
  });
}

}  // namespace fulgur
