#include "fulgur/ops/rope/kernels.h"

#include <cstring>

#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {
namespace {

float to_float(float value) { return value; }
float to_float(uint16_t value) { return from_bf16(value); }
void assign(float& to, float value) { to = value; }
void assign(uint16_t& to, float value) { to = to_bf16(value); }

template <class T>
void rotate_row(const RopeParams& p, int64_t row) {
  const float* cos = p.cos + row * (p.P / 2);
  const float* sin = p.sin + row * (p.P / 2);
  float sign = p.inverse ? -1.0f : 1.0f;
  int64_t first_stride = p.halves ? 1 : 2, partner = p.halves ? p.P / 2 : 1;
  for (int64_t h = 0; h < p.H; ++h) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_row + h * p.x_head;
    T* y = static_cast<T*>(p.y) + (row * p.H + h) * p.E;
    std::memcpy(y, x, p.E * sizeof(T));
    x += p.offset, y += p.offset;
    for (int64_t j = 0; j < p.P / 2; ++j) {
      int64_t i = j * first_stride;
      float a = to_float(x[i]), b = to_float(x[i + partner]), s = sin[j] * sign;
      assign(y[i], a * cos[j] - b * s);
      assign(y[i + partner], b * cos[j] + a * s);
    }
  }
}

}  // namespace

void rope_row(const RopeParams& p, int64_t row) {
  if (p.type == Storage::f32) rotate_row<float>(p, row);
  else rotate_row<uint16_t>(p, row);
}

}  // namespace fulgur::FULGUR_ISA
