#include "fulgur/ops/linear/linear.h"

#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

FULGUR_EACH_ISA(LinearOnEachIsa);

TEST_P(LinearOnEachIsa, EqualsTheReferenceOnOddShapes) {
  at::manual_seed(1);
  for (auto [N, I, O] : {std::array{1, 1, 1}, {5, 37, 13}, {33, 300, 70}, {200, 515, 129}, {3, 1024, 257}}) {
    auto x = at::randn({N, I}), w = at::randn({O, I});
    EXPECT_LT(relative(ops::linear(x, w), reference::linear(x, w)), 2e-6) << N << " " << I << " " << O;
    auto xb = x.to(at::kBFloat16);
    EXPECT_LT(relative(ops::linear(xb, w), reference::linear(xb, w)), 1e-2);
  }
}

TEST_P(LinearOnEachIsa, GradientsEqualAutogradThroughTheReference) {
  at::manual_seed(2);
  auto x = at::randn({45, 70}).requires_grad_(), w = at::randn({33, 70}).requires_grad_(), dy = at::randn({45, 33});
  ops::linear(x, w).backward(dy);
  auto dx = x.grad().clone(), dw = w.grad().clone();
  x.mutable_grad() = at::Tensor(), w.mutable_grad() = at::Tensor();
  reference::linear(x, w).backward(dy);
  EXPECT_LT(relative(dx, x.grad()), 2e-6);
  EXPECT_LT(relative(dw, w.grad()), 2e-6);
}

TEST_P(LinearOnEachIsa, HeadsWithSlicedWeightsAndTheirGradientsEqualTheReference) {
  at::manual_seed(3);
  auto x = at::randn({19, 5, 24}).requires_grad_();
  auto whole = at::randn({5, 24 + 8, 17}).requires_grad_();
  auto dy = at::randn({19, 5, 17});
  auto y = head_linear(x, whole.narrow(1, 0, 24));
  EXPECT_LT(relative(y, reference::head_linear(x, whole.narrow(1, 0, 24))), 2e-6);
  y.backward(dy);
  auto dx = x.grad().clone(), dw = whole.grad().clone();
  x.mutable_grad() = at::Tensor(), whole.mutable_grad() = at::Tensor();
  reference::head_linear(x, whole.narrow(1, 0, 24)).backward(dy);
  EXPECT_LT(relative(dx, x.grad()), 2e-6);
  EXPECT_LT(relative(dw, whole.grad()), 2e-6);
}

TEST_P(LinearOnEachIsa, ARowDoesNotDependOnItsBatchNorOnTheThreads) {
  at::manual_seed(4);
  auto w = at::randn({150, 605});
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto x = at::randn({100, 605}).to(type);
    auto all = ops::linear(x, w);
    for (int rows : {1, 2, 3, 4, 5, 7, 8, 9, 64})
      EXPECT_TRUE(at::equal(ops::linear(x.narrow(0, 30, rows), w), all.narrow(0, 30, rows)));
    int before = threads();
    set_threads(before == 1 ? 2 : 1);
    EXPECT_TRUE(at::equal(ops::linear(x, w), all));
    set_threads(before);
  }
}

TEST_P(LinearOnEachIsa, PackedWeightsGiveTheSameBits) {
  at::manual_seed(6);
  for (auto [I, O] : {std::array{2, 16}, {604, 160}, {1024, 48}, {256, 272}})
    for (auto type : {at::kFloat, at::kBFloat16})
      for (auto stored : {at::kFloat, at::kBFloat16}) {
        if (type == at::kBFloat16 && stored == at::kFloat) continue;
        auto w = at::randn({O, I}).to(stored), heads = at::randn({3, O, I}).to(stored);
        for (int rows : {1, 2, 3, 4, 5, 8, 11, 16, 17, 64}) {
          auto x = at::randn({rows, I}).to(type), x_heads = at::randn({rows, 3, I}).to(type);
          EXPECT_TRUE(at::equal(ops::linear(x, ops::pack(w)), ops::linear(x, w))) << rows << " " << I << " " << O;
          EXPECT_TRUE(at::equal(head_linear(x_heads, ops::pack(heads)), head_linear(x_heads, heads.transpose(1, 2))));
        }
      }
}

constexpr WeightFormat kQuantised[] = {WeightFormat::fp8, WeightFormat::int8, WeightFormat::int4};

// Rows as integers give: rounded to +-63 in groups of 128.
at::Tensor as_integers(const at::Tensor& x) {
  auto out = x.to(at::kFloat).clone();
  for (int64_t k = 0; k < x.size(-1); k += 128) {
    auto group = out.narrow(-1, k, std::min<int64_t>(128, x.size(-1) - k));
    auto scale = group.abs().amax(-1, true) / 63;
    group.copy_((group * (63 / group.abs().amax(-1, true))).round() * scale);
  }
  return out;
}

TEST_P(LinearOnEachIsa, QuantisedWeightsMultiplyAsWhatTheyHold) {
  at::manual_seed(7);
  for (auto [I, O] : {std::array{32, 16}, {608, 160}, {1024, 48}, {256, 272}})
    for (auto format : kQuantised) {
      auto w = ops::pack(at::randn({O, I}), format), heads = ops::pack(at::randn({3, O, I}), format);
      auto held = ops::unpack(w), held_heads = ops::unpack(heads);
      for (int rows : {1, 2, 3, 5, 9, 16, 17, 64}) {
        auto x = at::randn({rows, I}), x_heads = at::randn({rows, 3, I});
        auto read = [&](const at::Tensor& rows) { return format == WeightFormat::fp8 ? rows : as_integers(rows); };
        EXPECT_LT(relative(ops::linear(x, w), reference::linear(read(x), held)), 1e-6) << rows << " " << I << " " << int(format);
        EXPECT_LT(relative(head_linear(x_heads, heads), reference::head_linear(read(x_heads), held_heads.transpose(1, 2))), 1e-6);
      }
    }
}

TEST_P(LinearOnEachIsa, ARowByQuantisedWeightsDoesNotDependOnItsBatch) {
  at::manual_seed(8);
  for (auto format : kQuantised)
    for (auto type : {at::kFloat, at::kBFloat16}) {
      auto w = ops::pack(at::randn({272, 608}), format);
      auto x = at::randn({100, 608}).to(type), all = ops::linear(x, w);
      for (int rows : {1, 2, 3, 4, 7, 16, 17, 40})
        EXPECT_TRUE(at::equal(ops::linear(x.narrow(0, 30, rows), w), all.narrow(0, 30, rows))) << rows << " " << int(format);
    }
}

// However wide its vectors, and with tiles or without.
TEST(Linear, IntegersGiveTheSameBitsOnEveryCpuWithFma) {
  const char* best = isa_name(isa());
  if (isa() < Isa::avx512) GTEST_SKIP() << "this CPU has no AVX-512";
  at::manual_seed(11);
  for (auto format : {WeightFormat::int8, WeightFormat::int4})
    for (auto [I, O] : {std::array{608, 272}, {2336, 48}})
      for (int rows : {1, 17, 33, 100}) {
        auto x = at::randn({rows, I}), w = ops::pack(at::randn({O, I}), format), y = ops::linear(x, w);
        set_isa("avx2");
        EXPECT_TRUE(at::equal(ops::linear(x, w), y)) << int(format) << " " << I << " " << rows;
        set_isa(best);
      }
}

TEST_P(LinearOnEachIsa, Fp8WeightsGiveTheBitsOfTheirValues) {
  at::manual_seed(9);
  auto packed = ops::pack(at::randn({160, 608}), WeightFormat::fp8), held = ops::unpack(packed);
  EXPECT_TRUE(at::equal(ops::unpack(ops::pack(held, WeightFormat::fp8)), held));
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int rows : {1, 3, 16, 40}) {
      auto x = at::randn({rows, 608}).to(type);
      EXPECT_TRUE(at::equal(ops::linear(x, packed), ops::linear(x, held.to(type))));
    }
}

TEST(Linear, FormatsHoldWeightsAsWellAsTheyCan) {
  at::manual_seed(10);
  auto w = at::randn({64, 512});
  double error[] = {0, .04, .008, .11};  // relative, of normal weights
  for (auto format : {WeightFormat::fp8, WeightFormat::int8, WeightFormat::int4}) {
    auto held = ops::unpack(ops::pack(w, format));
    EXPECT_LT(((held - w).norm() / w.norm()).item<double>(), error[int(format)]) << int(format);
    EXPECT_TRUE(at::equal(ops::unpack(ops::pack(at::zeros({16, 32}), format)), at::zeros({16, 32})));
  }
  EXPECT_TRUE(at::equal(ops::unpack(ops::pack(w)), w));
  EXPECT_EQ(ops::pack(at::zeros({16, 40}), WeightFormat::int4).scalar_type(), at::kFloat);
}

TEST(Linear, Fp8RefusesWeightsItsReadersCannotScale) {
  EXPECT_THROW(ops::pack(at::full({16, 32}, 1e6), WeightFormat::fp8), InputError);
}

TEST(Linear, NotANumberShowsThroughIntegers) {
  auto x = at::ones({2, 256});
  x[1][200] = NAN;
  auto y = ops::linear(x, ops::pack(at::ones({16, 256}), WeightFormat::int8));
  EXPECT_TRUE(y[0].isfinite().all().item<bool>());
  EXPECT_TRUE(y[1].isnan().all().item<bool>());
}

TEST(Linear, PackingLeavesOddWeightsAsTheyAreAndRefusesToRound) {
  auto odd = at::zeros({17, 4}), packed = ops::pack(at::zeros({16, 4}));
  EXPECT_TRUE(ops::pack(odd).is_alias_of(odd));
  EXPECT_EQ(packed.sizes(), (std::vector<int64_t>{1, 4, 16}));
  EXPECT_THROW(ops::linear(at::zeros({1, 4}, at::kBFloat16), packed), InputError);
  EXPECT_THROW(ops::linear(at::zeros({1, 6}), packed), InputError);
  EXPECT_THROW(ops::linear(at::zeros({1, 4}).requires_grad_(), packed).sum().backward(), InputError);
}

TEST(Linear, NamesTheShapesThatDisagree) {
  EXPECT_THROW(ops::linear(at::zeros({2, 3}), at::zeros({4, 5})), InputError);
  EXPECT_EQ(ops::linear(at::zeros({0, 5}), at::zeros({4, 5})).sizes(), (std::vector<int64_t>{0, 4}));
}

}  // namespace
}  // namespace fulgur::ops
