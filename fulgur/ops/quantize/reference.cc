#include <ATen/ATen.h>

#include "fulgur/ops/quantize/quantize.h"

namespace fulgur::ops::reference {

at::Tensor to_e4m3(const at::Tensor& x) { return x.to(at::kFloat).clamp(-448, 448).to(at::kFloat8_e4m3fn).view(at::kByte); }

at::Tensor simulate_fp8(const at::Tensor& x) {
  std::vector<at::Tensor> groups;
  for (const auto& group : x.to(at::kFloat).split(128, -1)) {
    auto scale = (group.abs().amax(-1, true).clamp_min(1e-4) * (1.0f / 448.0f)).log2().ceil().exp2();
    groups.push_back((group / scale).clamp(-448, 448).to(at::kFloat8_e4m3fn).to(at::kFloat) * scale);
  }
  return at::cat(groups, -1).to(x.scalar_type());
}

// H_2n = [[H_n, H_n], [H_n, -H_n]]
at::Tensor hadamard(const at::Tensor& x) {
  auto h = at::ones({1, 1}, x.options().dtype(at::kFloat));
  while (h.size(0) < x.size(-1)) h = at::cat({at::cat({h, h}, 1), at::cat({h, -h}, 1)}, 0);
  return (at::matmul(x.to(at::kFloat), h) / std::sqrt(double(x.size(-1)))).to(x.scalar_type());
}

}  // namespace fulgur::ops::reference
