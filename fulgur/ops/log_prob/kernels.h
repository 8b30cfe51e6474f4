#pragma once

#include <cstdint>

#include "fulgur/ops/linear/gemm.h"

namespace fulgur {

// log(sum exp(row)), the exponentials summed by lanes in ascending order.
FULGUR_KERNEL(float, log_sum_exp, (const float* row, int64_t size))
// The same; and row becomes scale * (onehot(target) - softmax(row)), or zeros for target -1.
FULGUR_KERNEL(float, log_prob_gradient, (float* row, int64_t size, int64_t target, float scale))

}  // namespace fulgur
