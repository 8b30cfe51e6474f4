#pragma once

#include <cstdint>

#include "fulgur/ops/isa.h"

namespace fulgur {

struct AdamwParams {
  float* p;
  const float* g;
  float* m;
  float* v;
  float beta1, beta2, eps, grad_scale;
  float step_size;     // lr / (1 - beta1^t)
  float v_correction;  // 1 / sqrt(1 - beta2^t)
  float keep;          // 1 - lr * weight_decay
};

FULGUR_KERNEL(void, adamw_block, (const AdamwParams&, int64_t first, int64_t last))
FULGUR_KERNEL(float, squares_block, (const float* x, int64_t count))

}  // namespace fulgur
