#include "fulgur/ops/log_prob/kernels.h"

#include <algorithm>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {

float log_sum_exp(const float* row, int64_t size) {
  Vec largest = splat(-INFINITY);
  int64_t whole = size - size % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) largest = max(load(row + i), largest);
  float top = max_lane(largest);
  for (int64_t i = whole; i < size; ++i) top = top < row[i] ? row[i] : top;
  Vec total{};
  for (int64_t i = 0; i < whole; i += kLanes) total += exp(load(row + i) - top);
  float result = sum(total);
  for (int64_t i = whole; i < size; ++i) result += exp(row[i] - top);
  return top + std::log(result);
}

void log_prob_gradient(float* row, int64_t size, float lse, int64_t target, float scale) {
  for (int64_t i = 0; i < size; i += kLanes)
    write(row, Storage::f32, i, size - i, -scale * exp(read(row, Storage::f32, i, size - i) - lse));
  row[target] += scale;
}

}  // namespace fulgur::FULGUR_ISA
