#include "fulgur/ops/adamw/kernels.h"

#include <algorithm>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

Vec square_root(Vec x) {
  for (int i = 0; i < kLanes; ++i) x[i] = std::sqrt(x[i]);
  return x;
}

}  // namespace

void adamw_block(const AdamwParams& a, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; i += kLanes) {
    int64_t n = last - i;
    Vec g = read(a.g, Storage::f32, i, n) * a.grad_scale;
    Vec m = fma(splat(1 - a.beta1), g, a.beta1 * read(a.m, Storage::f32, i, n));
    Vec v = fma((1 - a.beta2) * g, g, a.beta2 * read(a.v, Storage::f32, i, n));
    Vec p = a.keep * read(a.p, Storage::f32, i, n) - a.step_size * m / (square_root(v) * a.v_correction + a.eps);
    write(a.m, Storage::f32, i, n, m);
    write(a.v, Storage::f32, i, n, v);
    write(a.p, Storage::f32, i, n, p);
  }
}

float squares_block(const float* x, int64_t count) {
  Vec total{};
  for (int64_t i = 0; i < count; i += kLanes) {
    Vec value = read(x, Storage::f32, i, count - i);
    total = fma(value, value, total);
  }
  return sum(total);
}

}  // namespace fulgur::FULGUR_ISA
