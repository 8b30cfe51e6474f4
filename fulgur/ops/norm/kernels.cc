#include "fulgur/ops/norm/kernels.h"

#include <algorithm>
#include <vector>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

// The f32 row that is normalised, zero-padded to whole vectors.
float* unrounded_row(const NormParams& p, int64_t row) {
  static thread_local std::vector<float> buffer;
  buffer.resize(std::max<size_t>(buffer.size(), p.D + kLanes));
  for (int64_t i = 0; i < p.D; i += kLanes) {
    Vec value = read(p.x, p.type, row * p.D + i, p.D - i);
    if (p.residual) {
      value += read(p.residual, p.type, row * p.D + i, p.D - i);
      write(p.sum, p.type, row * p.D + i, p.D - i, value);
    }
    store(buffer.data() + i, value);
  }
  return buffer.data();
}

}  // namespace

void norm_row(const NormParams& p, int64_t row) {
  float* x = unrounded_row(p, row);
  float mean = 0;
  if (p.bias) {
    Vec total{};
    for (int64_t i = 0; i < p.D; i += kLanes) total += load(x + i);
    mean = sum(total) / float(p.D);
    for (int64_t i = 0; i < p.D; ++i) x[i] -= mean;
    p.mean[row] = mean;
  }
  Vec squares{};
  for (int64_t i = 0; i < p.D; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  float rstd = 1.0f / std::sqrt(sum(squares) / float(p.D) + p.eps);
  p.rstd[row] = rstd;
  for (int64_t i = 0; i < p.D; i += kLanes) {
    Vec value = load(x + i) * rstd * read(p.weight, Storage::f32, i, p.D - i);
    if (p.bias) value += read(p.bias, Storage::f32, i, p.D - i);
    write(p.y, p.type, row * p.D + i, p.D - i, value);
  }
}

// With xh = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - xh * mean(g * xh)); RMSNorm has no mean.
void norm_backward_row(const NormBackwardParams& p, int64_t row) {
  float mean = p.mean ? p.mean[row] : 0, rstd = p.rstd[row];
  int64_t at = row * p.D;
  Vec dot{}, total{};
  for (int64_t i = 0; i < p.D; i += kLanes) {
    Vec g = read(p.dy, p.type, at + i, p.D - i) * read(p.weight, Storage::f32, i, p.D - i);
    dot = fma(g, (read(p.x, p.type, at + i, p.D - i) - mean) * rstd, dot);
    total += g;
  }
  float along = sum(dot) / float(p.D), shift = p.mean ? sum(total) / float(p.D) : 0;
  for (int64_t i = 0; i < p.D; i += kLanes) {
    Vec g = read(p.dy, p.type, at + i, p.D - i) * read(p.weight, Storage::f32, i, p.D - i);
    Vec normal = (read(p.x, p.type, at + i, p.D - i) - mean) * rstd;
    Vec dx = (g - shift - normal * along) * rstd;
    if (p.dsum) dx += read(p.dsum, p.type, at + i, p.D - i);
    write(p.dx, p.type, at + i, p.D - i, dx);
  }
}

void norm_backward_columns(const NormBackwardParams& p, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += kLanes) {
    int64_t count = std::min<int64_t>(last - i, kLanes);
    Vec dweight{}, dbias{};
    for (int64_t row = 0; row < p.N; ++row) {
      Vec dy = read(p.dy, p.type, row * p.D + i, count);
      float mean = p.mean ? p.mean[row] : 0;
      dweight = fma(dy, (read(p.x, p.type, row * p.D + i, count) - mean) * p.rstd[row], dweight);
      dbias += dy;
    }
    write(p.dweight, Storage::f32, i, count, dweight);
    if (p.dbias) write(p.dbias, Storage::f32, i, count, dbias);
  }
}

}  // namespace fulgur::FULGUR_ISA
