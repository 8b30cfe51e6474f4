#include "fulgur/ops/log_prob/kernels.h"

#include <algorithm>

#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {

namespace {

struct Sum {
  float top, total;  // total = sum exp(row - top)
  float log() const { return top + std::log(total); }
};

// each(i, count, e): what exp(row[i] - top) is, a vector at a time.
template <class Each>
Sum sum_exp(const float* row, int64_t size, const Each& each) {
  Vec largest = splat(-INFINITY);
  int64_t whole = size - size % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) largest = max(load(row + i), largest);
  float top = max_lane(largest);
  for (int64_t i = whole; i < size; ++i) top = top < row[i] ? row[i] : top;
  Vec total{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    Vec e = exp(load(row + i) - top);
    total += e;
    each(i, int64_t(kLanes), e);
  }
  float result = sum(total);
  if (whole < size) {
    Vec e = exp(read(row, Storage::f32, whole, size - whole) - top);
    for (int64_t i = whole; i < size; ++i) result += e[i - whole];
    each(whole, size - whole, e);
  }
  return {top, result};
}

}  // namespace

float log_sum_exp(const float* row, int64_t size) {
  return sum_exp(row, size, [](int64_t, int64_t, Vec) {}).log();
}

float log_prob_gradient(float* row, int64_t size, int64_t target, float scale) {
  Sum sum = sum_exp(row, size, [&](int64_t i, int64_t count, Vec e) { write(row, Storage::f32, i, count, e); });
  float factor = -scale / sum.total;
  if (target < 0) std::fill(row, row + size, 0.0f);
  else
    for_vectors(
        size, [&](int64_t i, int64_t count) { write(row, Storage::f32, i, count, read(row, Storage::f32, i, count) * factor); });
  if (target >= 0) row[target] += scale;
  return sum.log();
}

}  // namespace fulgur::FULGUR_ISA
