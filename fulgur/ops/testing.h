// What op tests share: comparing with a reference on every instruction set.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/ops/isa.h"

namespace fulgur::ops {

// max |got - expected| / max |expected|
inline double relative(const at::Tensor& got, const at::Tensor& expected) {
  if (expected.numel() == 0) return got.numel() == 0 ? 0 : 1;
  auto e = expected.detach().to(at::kDouble);
  return ((got.detach().to(at::kDouble) - e).abs().max() / e.abs().max().clamp_min(1e-30)).item<double>();
}

using Op = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

// Largest relative difference over the output and the gradients of the inputs that want one.
inline double worst_difference(const Op& op, const Op& reference, const std::vector<at::Tensor>& inputs) {
  auto run = [&](const Op& f) {
    std::vector<at::Tensor> leaves;
    for (auto& x : inputs) leaves.push_back(x.is_floating_point() ? x.detach().clone().requires_grad_(x.requires_grad()) : x);
    auto y = f(leaves);
    std::vector<at::Tensor> out{y};
    if (y.requires_grad()) {
      at::manual_seed(99);
      y.backward(at::randn(y.sizes(), y.options().dtype(at::kFloat)).to(y.scalar_type()));
    }
    for (auto& leaf : leaves)
      if (leaf.requires_grad()) out.push_back(leaf.grad());
    return out;
  };
  auto got = run(op), expected = run(reference);
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].sizes(), expected[i].sizes());
    EXPECT_EQ(got[i].scalar_type(), expected[i].scalar_type());
    worst = std::max(worst, relative(got[i], expected[i]));
  }
  return worst;
}

// The same test on portable, AVX2 and AVX-512; says so where this CPU lacks one.
class EachIsa : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    try {
      set_isa(GetParam());
    } catch (const InputError&) {
      GTEST_SKIP() << "this CPU has no " << GetParam();
    }
  }
  void TearDown() override { set_isa(best_); }

 private:
  const char* best_ = isa_name(isa());
};

}  // namespace fulgur::ops

#define FULGUR_EACH_ISA(name)                                                             \
  class name : public ::fulgur::ops::EachIsa {}; /* NOLINT(bugprone-macro-parentheses) */ \
  INSTANTIATE_TEST_SUITE_P(Isa, name, testing::Values("portable", "avx2", "avx512", "avx512bf16"))
