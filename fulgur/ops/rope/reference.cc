#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>

#include "fulgur/ops/rope/rope.h"

namespace fulgur::ops::reference {

at::Tensor rope(const at::Tensor& x_NHE, const Rotation& rotation, int64_t offset, Pairing pairing) {
  int64_t half = rotation.cos_NP.size(1), rest = x_NHE.size(2) - offset - 2 * half;
  auto cos = rotation.cos_NP.unsqueeze(1), sin = rotation.sin_NP.unsqueeze(1);
  auto turned = x_NHE.narrow(2, offset, 2 * half).to(at::kFloat);
  at::Tensor rotated;
  if (pairing == Pairing::halves) {
    auto a = turned.narrow(2, 0, half), b = turned.narrow(2, half, half);
    rotated = at::cat({a * cos - b * sin, b * cos + a * sin}, 2);
  } else {
    auto pairs = turned.unflatten(2, {half, 2});
    auto a = pairs.select(3, 0), b = pairs.select(3, 1);
    rotated = at::stack({a * cos - b * sin, b * cos + a * sin}, 3).flatten(2);
  }
  return at::cat({x_NHE.narrow(2, 0, offset), rotated.to(x_NHE.scalar_type()), x_NHE.narrow(2, offset + 2 * half, rest)}, 2);
}

}  // namespace fulgur::ops::reference
