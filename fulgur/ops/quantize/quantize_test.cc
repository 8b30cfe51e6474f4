// Against ATen's own e4m3 and an explicit Hadamard matrix; golden bytes stand in model/vectors_test.cc.
#include "fulgur/ops/quantize/quantize.h"

#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

TEST(Quantize, EveryFloatRoundsAsAtensDoes) {
  at::manual_seed(1);
  auto x = at::cat(
      {at::randn({20000}) * at::exp2(at::randint(-14, 12, {20000}).to(at::kFloat)), from_e4m3(at::arange(127, at::kByte))});
  EXPECT_TRUE(at::equal(to_e4m3(x), reference::to_e4m3(x)));
}

TEST(Quantize, SimulationIsTheReferencesAndPassesGradientsThrough) {
  at::manual_seed(2);
  for (const auto& sizes : {std::vector<int64_t>{5, 300}, {2, 3, 64}}) {
    auto x = at::randn(sizes) * 10;
    EXPECT_TRUE(at::equal(simulate_fp8(x), reference::simulate_fp8(x)));
  }
  auto x = at::randn({3, 128}).requires_grad_();
  simulate_fp8(x).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::ones({3, 128})));
}

TEST(Quantize, HadamardIsTheMatrixAndItsOwnInverse) {
  at::manual_seed(3);
  for (int64_t n : {1, 2, 32, 128}) {
    auto x = at::randn({4, 3, n}).requires_grad_();
    auto op = [](const std::vector<at::Tensor>& in) { return hadamard(in[0]); };
    auto expected = [](const std::vector<at::Tensor>& in) { return reference::hadamard(in[0]); };
    EXPECT_LT(worst_difference(op, expected, {x}), 2e-6);
    EXPECT_LT(relative(hadamard(hadamard(x)), x), 2e-6);
  }
  EXPECT_THROW(hadamard(at::ones({2, 3})), InputError);
}

}  // namespace
}  // namespace fulgur::ops
