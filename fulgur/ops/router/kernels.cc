#include "fulgur/ops/router/kernels.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fulgur/ops/indexer/top_k.h"
#include "fulgur/ops/simd_rows.h"

namespace fulgur::FULGUR_ISA {
namespace {

// Sigmoids of the `count` logits from e on, and zeros behind them.
Vec scores(const float* logits, int64_t e, int64_t count) {
  Vec s = 1.0f / (1.0f + exp(-read(logits, Storage::f32, e, count)));
  return count >= kLanes ? s : lane_numbers() < int32_t(count) ? s : Vec{};
}

// The two largest of values, added; one alone is the sum.
float sum_of_best_two(const float* values, int64_t size) {
  Vec first = splat(-INFINITY), second = first;
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    Vec value = load(values + i);
    second = max(second, min(first, value));
    first = max(first, value);
  }
  float one = -INFINITY, two = -INFINITY;
  auto take = [&](float value) {
    two = std::max(two, std::min(one, value));
    one = std::max(one, value);
  };
  for (int lane = 0; lane < kLanes; ++lane) take(first[lane]), take(second[lane]);
  for (; i < size; ++i) take(values[i]);
  return size > 1 ? one + two : one;
}

// Whether fewer than `count` of the values are better than values[at]: larger, or as large at a smaller index.
bool among_best(const float* values, int64_t size, int64_t at, int64_t count) {
  int64_t better = 0;
  for (int64_t i = 0; i < size; ++i) better += (values[i] > values[at]) | ((values[i] == values[at]) & (i < at));
  return better < count;
}

}  // namespace

// The scores take libm's exp, half of the time here: a routing is a decision, and is the same on every instruction set.
void route_row(const RouteParams& p, int64_t row) {
  static thread_local std::vector<float> biased, group_score;
  static thread_local TopK best;
  biased.resize(p.experts), group_score.resize(p.n_group);
  const float* logits = p.logits + row * p.experts;
  float* score = biased.data();
  for (int64_t e = 0; e < p.experts; ++e) score[e] = std::exp(-logits[e]);
  for_vectors(p.experts, [&](int64_t e, int64_t n) {
    Vec value = 1.0f / (1.0f + read(score, Storage::f32, e, n)) + read(p.bias, Storage::f32, e, n);
    write(score, Storage::f32, e, n, value == value ? value : splat(-INFINITY));  // NOLINT(misc-redundant-expression): NaN
  });
  int64_t size = p.experts / p.n_group;
  for (int64_t g = 0; g < p.n_group; ++g) group_score[g] = sum_of_best_two(score + g * size, size);
  best.start(p.k);
  for (int64_t g = 0; g < p.n_group; ++g)
    if (among_best(group_score.data(), p.n_group, g, p.topk_group)) best.add(score + g * size, size, int32_t(g * size));
  best.finish(p.ids + row * p.k);
}

float balance_row(const float* logits, const float* fraction, int64_t experts) {
  Vec total{}, weighted{};
  for_vectors(experts, [&](int64_t e, int64_t n) {
    Vec s = scores(logits, e, n);
    total += s;
    weighted = fma(s, read(fraction, Storage::f32, e, n), weighted);
  });
  return sum(weighted) / sum(total);
}

void balance_backward_row(const float* logits, const float* fraction, int64_t experts, float unit, float* dlogits) {
  Vec total{}, weighted{};
  for_vectors(experts, [&](int64_t e, int64_t n) {
    Vec s = scores(logits, e, n);
    total += s;
    weighted = fma(s, read(fraction, Storage::f32, e, n), weighted);
    write(dlogits, Storage::f32, e, n, s);
  });
  float all = sum(total), mean = sum(weighted) / all, slope = unit / all;
  for_vectors(experts, [=](int64_t e, int64_t n) {
    Vec s = read(dlogits, Storage::f32, e, n), f = read(fraction, Storage::f32, e, n);
    write(dlogits, Storage::f32, e, n, slope * (f - mean) * s * (1.0f - s));
  });
}

}  // namespace fulgur::FULGUR_ISA
