#include <ATen/TensorOperators.h>

#include "fulgur/ops/embedding/embedding.h"

namespace fulgur::ops::reference {

at::Tensor embedding(const at::Tensor& weight_VD, const at::Tensor& ids_N, at::ScalarType type) {
  auto ids = ids_N.to(at::kLong);
  return (weight_VD.index_select(0, ids.clamp_min(0)) * (ids >= 0).unsqueeze(1)).to(type);
}

}  // namespace fulgur::ops::reference
