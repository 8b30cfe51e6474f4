#include "fulgur/ops/adamw/adamw.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/ops/adamw/kernels.h"

namespace fulgur::ops {
namespace {

constexpr int64_t kBlock = 1 << 14;
constexpr int64_t kSumBlock = 4096;

void check(const at::Tensor& tensor, int64_t size, const char* what) {
  FULGUR_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous() && tensor.numel() == size, "[adamw] expected ", what,
               " of ", size, " contiguous float32 numbers, got ", tensor.sizes(), " ", tensor.scalar_type());
}

}  // namespace

void adamw(at::Tensor& parameter, const at::Tensor& gradient, at::Tensor& m, at::Tensor& v, const AdamwStep& s) {
  int64_t size = parameter.numel();
  check(parameter, size, "a parameter"), check(gradient, size, "a gradient"), check(m, size, "m"), check(v, size, "v");
  AdamwParams params{parameter.mutable_data_ptr<float>(),
                     gradient.const_data_ptr<float>(),
                     m.mutable_data_ptr<float>(),
                     v.mutable_data_ptr<float>(),
                     float(s.beta1),
                     float(s.beta2),
                     float(s.eps),
                     float(s.grad_scale),
                     float(s.lr / (1 - std::pow(s.beta1, s.step))),
                     float(1 / std::sqrt(1 - std::pow(s.beta2, s.step))),
                     float(1 - s.lr * s.weight_decay)};
  auto kernel = FULGUR_CALL(adamw_block);
  parallel_for((size + kBlock - 1) / kBlock, [&](int64_t i) { kernel(params, i * kBlock, std::min(size, (i + 1) * kBlock)); });
}

double sum_of_squares(const at::Tensor& tensor) {
  check(tensor, tensor.numel(), "a tensor");
  int64_t size = tensor.numel();
  const float* x = tensor.const_data_ptr<float>();
  std::vector<float> blocks((size + kSumBlock - 1) / kSumBlock);
  auto kernel = FULGUR_CALL(squares_block);
  parallel_for(int64_t(blocks.size()),
               [&](int64_t i) { blocks[i] = kernel(x + i * kSumBlock, std::min(kSumBlock, size - i * kSumBlock)); });
  double total = 0;
  for (float block : blocks) total += block;
  return total;
}

}  // namespace fulgur::ops
