// Against ATen's own e4m3 and an explicit Hadamard matrix; golden bytes stand in model/vectors_test.cc.
#include "fulgur/ops/quantize/quantize.h"

#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

FULGUR_EACH_ISA(Quantize);

TEST_P(Quantize, EveryFloatRoundsAsAtensDoes) {
  at::manual_seed(1);
  auto x = at::cat(
      {at::randn({20000}) * at::exp2(at::randint(-14, 12, {20000}).to(at::kFloat)), from_e4m3(at::arange(127, at::kByte))});
  EXPECT_TRUE(at::equal(to_e4m3(x), reference::to_e4m3(x)));
}

TEST_P(Quantize, EveryCodeAndEveryBfloat16IsRight) {
  auto codes = at::arange(256).to(at::kByte), values = from_e4m3(codes);
  auto expected = codes.view(at::kFloat8_e4m3fn).to(at::kFloat);
  EXPECT_TRUE(at::equal(values.nan_to_num(1000), expected.nan_to_num(1000)));
  EXPECT_TRUE(at::equal(to_e4m3(values).narrow(0, 0, 255), codes.narrow(0, 0, 255)));
  auto x = at::arange(65536).to(at::kInt).bitwise_left_shift(16).view(at::kFloat);
  EXPECT_TRUE(at::equal(to_e4m3(x), at::where(x.isnan(), 0x7f, reference::to_e4m3(x)).to(at::kByte)));
}

TEST_P(Quantize, AnySizeGivesTheBytesOfALongerOne) {
  at::manual_seed(4);
  auto x = at::randn({40}), bytes = to_e4m3(x);
  for (int64_t n : {0, 1, 7, 8, 9, 16, 33}) {
    EXPECT_TRUE(at::equal(to_e4m3(x.narrow(0, 0, n)), bytes.narrow(0, 0, n)));
    EXPECT_TRUE(at::equal(from_e4m3(bytes.narrow(0, 0, n)), from_e4m3(bytes).narrow(0, 0, n)));
  }
  for (const auto& sizes : {std::vector<int64_t>{0, 5}, {3, 0}}) {
    EXPECT_EQ(simulate_fp8(at::empty(sizes)).sizes(), at::IntArrayRef(sizes));
    EXPECT_EQ(std::get<0>(quantize_rows(at::empty(sizes), ScaleRule::pow2)).sizes(), at::IntArrayRef(sizes));
  }
}

TEST_P(Quantize, ScalesAreThoseOfTheirGroupsAndABlocksRowsShareOne) {
  at::manual_seed(5);
  auto x = at::randn({130, 131}) * at::exp2(at::arange(130) - 64.0).unsqueeze(1);
  for (auto rule : {ScaleRule::pow2, ScaleRule::plain}) {
    auto [bytes, scales] = quantize_rows(x, rule);
    auto amax = at::stack({x.narrow(1, 0, 128).abs().amax(1), x.narrow(1, 128, 3).abs().amax(1)}, 1);
    auto expected = amax.clamp_min(1e-4) * (1.0f / 448.0f);
    EXPECT_TRUE(at::equal(scales, rule == ScaleRule::plain ? expected : expected.log2().ceil().exp2()));
    auto spread = scales.repeat_interleave(128, 1).narrow(1, 0, 131);
    EXPECT_TRUE(at::equal(bytes, reference::to_e4m3(x / spread)));
    EXPECT_TRUE(at::equal(dequantize_rows(bytes, scales), from_e4m3(bytes) * spread));
    auto [block_bytes, block_scales] = quantize_blocks(x, rule);
    EXPECT_EQ(block_scales.sizes(), at::IntArrayRef({2, 2}));
    spread = block_scales.repeat_interleave(128, 0).narrow(0, 0, 130).repeat_interleave(128, 1).narrow(1, 0, 131);
    EXPECT_TRUE(at::equal(block_bytes, reference::to_e4m3(x / spread)));
    EXPECT_TRUE(at::equal(dequantize_blocks(block_bytes, block_scales), from_e4m3(block_bytes) * spread));
  }
}

TEST_P(Quantize, SimulationIsTheReferencesAndPassesGradientsThrough) {
  at::manual_seed(2);
  for (const auto& sizes : {std::vector<int64_t>{5, 300}, {2, 3, 64}}) {
    for (auto type : {at::kFloat, at::kBFloat16}) {
      auto x = (at::randn(sizes) * 10).to(type);
      EXPECT_TRUE(at::equal(simulate_fp8(x), reference::simulate_fp8(x)));
    }
  }
  auto x = at::randn({3, 128}).requires_grad_();
  simulate_fp8(x).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::ones({3, 128})));
}

TEST_P(Quantize, HadamardIsTheMatrixAndItsOwnInverse) {
  at::manual_seed(3);
  for (int64_t n : {1, 2, 4, 8, 16, 32, 128}) {
    auto x = at::randn({4, 3, n}).requires_grad_();
    auto op = [](const std::vector<at::Tensor>& in) { return hadamard(in[0]); };
    auto expected = [](const std::vector<at::Tensor>& in) { return reference::hadamard(in[0]); };
    EXPECT_LT(worst_difference(op, expected, {x}), 2e-6);
    EXPECT_LT(relative(hadamard(hadamard(x)), x), 2e-6);
    EXPECT_TRUE(at::equal(hadamard(x)[1][2], hadamard(x[1][2])));
  }
  EXPECT_THROW(hadamard(at::ones({2, 3})), InputError);
}

}  // namespace
}  // namespace fulgur::ops
