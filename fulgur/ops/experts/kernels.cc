#include "fulgur/ops/experts/kernels.h"

#include <algorithm>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {

void swiglu_block(const SwigluParams& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += kLanes) {
    int64_t count = last - i;
    Vec gate = read(p.gate, p.type, i, count), up = read(p.up, p.type, i, count);
    Vec sigmoid = 1.0f / (1.0f + exp(-gate));
    Vec silu = gate * sigmoid;
    if (p.y) write(p.y, p.type, i, count, silu * up);
    if (!p.dy) continue;
    Vec dy = read(p.dy, p.type, i, count);
    write(p.dup, p.type, i, count, dy * silu);
    write(p.dgate, p.type, i, count, dy * up * sigmoid * (1.0f + gate * (1.0f - sigmoid)));
  }
}

void combine_row(const CombineParams& p, int64_t row) {
  const int32_t* place = p.place + row * p.k;
  for (int64_t d = 0; d < p.D; d += kLanes) {
    Vec total{};
    for (int64_t i = 0; i < p.k; ++i) {
      Vec value = read(p.rows, p.type, place[i] * p.D + d, p.D - d);
      total = p.weights ? fma(value, splat(p.weights[row * p.k + i]), total) : total + value;
    }
    if (p.last) total += read(p.last, p.type, row * p.D + d, p.D - d);
    write(p.y, p.type, row * p.D + d, p.D - d, total);
  }
}

void spread_row(const SpreadParams& p, int64_t row) {
  for (int64_t i = row * p.k; i < (row + 1) * p.k; ++i) {
    Vec dot{};
    for (int64_t d = 0; d < p.D; d += kLanes) {
      Vec dy = read(p.dy, p.type, row * p.D + d, p.D - d);
      dot = fma(dy, read(p.rows, p.type, p.place[i] * p.D + d, p.D - d), dot);
      write(p.drows, p.type, p.place[i] * p.D + d, p.D - d, dy * p.weights[i]);
    }
    p.dweights[i] = sum(dot);
  }
}

}  // namespace fulgur::FULGUR_ISA
