#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

// log(sum exp(row)), the exponentials summed by lanes in ascending order.
FULGUR_KERNEL(float, log_sum_exp, (const float* row, int64_t size))
// row = scale * (onehot(target) - exp(row - lse)), in place.
FULGUR_KERNEL(void, log_prob_gradient, (float* row, int64_t size, float lse, int64_t target, float scale))

}  // namespace fulgur
