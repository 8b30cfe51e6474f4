#include "fulgur/ops/norm/kernels.h"

#include <algorithm>
#include <cmath>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

// Adds terms(at, count) over a row in four chains, since one alone waits for each addition to end.
template <class Terms>
__attribute__((flatten)) float sum_row(int64_t size, const Terms& terms) {
  constexpr int64_t kStep = 4 * kLanes;
  Vec a{}, b{}, c{}, d{};
  int64_t whole = size - size % kStep;
  for (int64_t i = 0; i < whole; i += kStep) {
    a += terms(i, kLanes), b += terms(i + kLanes, kLanes);
    c += terms(i + 2 * kLanes, kLanes), d += terms(i + 3 * kLanes, kLanes);
  }
  for_vectors(size - whole, [&](int64_t i, int64_t n) { a += terms(whole + i, n); });
  return sum((a + b) + (c + d));
}

// Lanes from `count` on become zero.
Vec head(Vec value, int64_t count) { return count >= kLanes ? value : lane_numbers() < int32_t(count) ? value : Vec{}; }

}  // namespace

void norm_row(const NormParams& p, int64_t row) {
  int64_t at = row * p.D;
  auto unrounded = [&](int64_t i, int64_t n) {
    Vec value = read(p.x, p.type, at + i, n);
    return p.residual ? value + read(p.residual, p.type, at + i, n) : value;
  };
  float mean = 0;
  if (p.bias) p.mean[row] = mean = sum_row(p.D, unrounded) / float(p.D);
  float squares = sum_row(p.D, [&](int64_t i, int64_t n) {
    Vec value = head(unrounded(i, n) - mean, n);
    return value * value;
  });
  float rstd = p.rstd[row] = 1.0f / std::sqrt(squares / float(p.D) + p.eps);
  for_vectors(p.D, [&](int64_t i, int64_t n) {
    Vec value = unrounded(i, n);
    if (p.sum) write(p.sum, p.type, at + i, n, value);
    value = (value - mean) * rstd * read(p.weight, Storage::f32, i, n);
    if (p.bias) value += read(p.bias, Storage::f32, i, n);
    write(p.y, p.type, at + i, n, value);
  });
}

// With xh = (x - mean) * rstd and g = dy * weight: dx = rstd * (g - mean(g) - xh * mean(g * xh)); RMSNorm has no mean.
void norm_backward_row(const NormBackwardParams& p, int64_t row, float* dweight, float* dbias) {
  float mean = p.mean ? p.mean[row] : 0, rstd = p.rstd[row];
  int64_t at = row * p.D;
  auto gradient = [&](int64_t i, int64_t n) { return read(p.dy, p.type, at + i, n) * read(p.weight, Storage::f32, i, n); };
  auto normal = [&](int64_t i, int64_t n) { return (read(p.x, p.type, at + i, n) - mean) * rstd; };
  float along = sum_row(p.D, [&](int64_t i, int64_t n) { return gradient(i, n) * normal(i, n); }) / float(p.D);
  float shift = p.mean ? sum_row(p.D, gradient) / float(p.D) : 0;
  for_vectors(p.D, [&](int64_t i, int64_t n) {
    Vec dy = read(p.dy, p.type, at + i, n), xh = normal(i, n);
    Vec dx = (dy * read(p.weight, Storage::f32, i, n) - shift - xh * along) * rstd;
    if (p.dsum) dx += read(p.dsum, p.type, at + i, n);
    write(p.dx, p.type, at + i, n, dx);
    write(dweight, Storage::f32, i, n, fma(dy, xh, read(dweight, Storage::f32, i, n)));
    if (dbias) write(dbias, Storage::f32, i, n, read(dbias, Storage::f32, i, n) + dy);
  });
}

void add_rows(const float* rows, int64_t count, int64_t D, float* total, int64_t first, int64_t last) {
  std::fill(total + first, total + last, 0.0f);
  for (int64_t row = 0; row < count; ++row)
    for_vectors(last - first, [&](int64_t i, int64_t n) {
      int64_t at = first + i;
      write(total, Storage::f32, at, n, read(total, Storage::f32, at, n) + read(rows, Storage::f32, row * D + at, n));
    });
}

}  // namespace fulgur::FULGUR_ISA
