#pragma once

#include <cstdint>

#include "fulgur/ops/isa.h"

namespace fulgur {

struct RouteParams {
  const float* logits;  // [N, experts]
  const float* bias;    // [experts]
  int32_t* ids;         // [N, k]
  int64_t experts, n_group, topk_group, k;
};

FULGUR_KERNEL(void, route_row, (const RouteParams&, int64_t row))
// sum_e f_e s_e / sum_e s_e of one row, s = sigmoid(logits), and unit times its gradient.
FULGUR_KERNEL(float, balance_row, (const float* logits, const float* fraction, int64_t experts))
FULGUR_KERNEL(void, balance_backward_row,
              (const float* logits, const float* fraction, int64_t experts, float unit, float* dlogits))

}  // namespace fulgur
