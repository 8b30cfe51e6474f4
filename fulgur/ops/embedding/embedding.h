// Rows of a table. Row-invariant; the table's gradient adds rows in ascending order. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

// x_ND = weight_VD[ids_N] in `type`, either of f32 or bf16; an id of -1 gives zeros and takes no gradient.
// Throws InputError on ids outside [-1, V).
at::Tensor embedding(const at::Tensor& weight_VD, const at::Tensor& ids_N, at::ScalarType type);

namespace reference {
at::Tensor embedding(const at::Tensor& weight_VD, const at::Tensor& ids_N, at::ScalarType type);
}

}  // namespace fulgur::ops
