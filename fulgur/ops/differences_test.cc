// Every backward written by hand against finite differences of its own forward, element by element. This needs no reference:
// an op whose reference shares its mistake still fails here. The f32 forwards are differenced in double, at two step lengths,
// and extrapolated (Richardson), so that the error is O(h^4) and noise about 1e-7 / h.
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/embedding/embedding.h"
#include "fulgur/ops/experts/experts.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/log_prob/log_prob.h"
#include "fulgur/ops/norm/norm.h"
#include "fulgur/ops/quantize/quantize.h"
#include "fulgur/ops/rope/rope.h"
#include "fulgur/ops/router/router.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"
#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

using List = std::vector<at::Tensor>;

at::Tensor leaf(at::IntArrayRef shape) { return at::randn(shape).requires_grad_(); }
at::Tensor ints(const std::vector<int>& values, at::IntArrayRef shape) { return at::tensor(values, at::kInt).view(shape); }

// Largest error over all inputs that want a gradient, relative to the input's largest slope.
double worst_slope(const Op& op, const List& inputs) {
  auto y = op(inputs);
  auto direction = at::randn(y.sizes());
  y.backward(direction);
  at::NoGradGuard none;
  auto value = [&] { return op(inputs).to(at::kDouble); };
  double worst = 0;
  for (const auto& input : inputs) {
    if (!input.requires_grad()) continue;
    auto slopes = at::zeros(input.sizes(), at::kDouble);
    auto flat = input.view({-1}), to = slopes.view({-1});
    for (int64_t i = 0; i < flat.size(0); ++i) {
      float* at = flat.mutable_data_ptr<float>() + i;
      float center = *at;
      auto central = [&](float h) {
        float above = center + h, below = center - h;
        *at = above;
        auto difference = value();
        *at = below;
        difference -= value();
        *at = center;
        return (difference * direction).sum().item<double>() / (double(above) - double(below));
      };
      constexpr float kStep = 0x1p-7f;
      to[i] = (4 * central(kStep) - central(2 * kStep)) / 3;
    }
    worst = std::max(worst, relative(input.grad(), slopes));
  }
  return worst;
}

constexpr double kBar = 3e-4;

FULGUR_EACH_ISA(Differences);

TEST_P(Differences, Products) {
  at::manual_seed(1);
  EXPECT_LT(worst_slope([](const List& in) { return ops::linear(in[0], in[1]); }, {leaf({5, 19}), leaf({7, 19})}), kBar);
  EXPECT_LT(worst_slope([](const List& in) { return head_linear(in[0], in[1]); }, {leaf({5, 3, 6}), leaf({3, 6, 9})}), kBar);
  auto ids = ints({3, 0, 3, -1, 2}, {5});
  EXPECT_LT(worst_slope([&](const List& in) { return ops::embedding(in[0], ids, at::kFloat); }, {leaf({4, 18})}), kBar);
}

TEST_P(Differences, Norms) {
  at::manual_seed(2);
  EXPECT_LT(worst_slope([](const List& in) { return ops::rms_norm(in[0], in[1], 1e-6); }, {leaf({4, 21}), leaf({21})}), kBar);
  auto add = [](const List& in) {
    auto [y, sum] = add_rms_norm(in[0], in[1], in[2], 1e-6);
    return y + sum * 0.5;
  };
  EXPECT_LT(worst_slope(add, {leaf({4, 21}), leaf({4, 21}), leaf({21})}), kBar);
  EXPECT_LT(worst_slope([](const List& in) { return ops::layer_norm(in[0], in[1], in[2], 1e-6); },
                        {leaf({4, 21}), leaf({21}), leaf({21})}),
            kBar);
}

TEST_P(Differences, Rotations) {
  at::manual_seed(3);
  auto turn = rotation(at::arange(4) * 13, {1.0f, 0.3f, 0.01f});
  for (auto pairing : {Pairing::adjacent, Pairing::halves})
    EXPECT_LT(worst_slope([&](const List& in) { return rope(in[0], turn, 2, pairing); }, {leaf({4, 2, 9})}), kBar);
  EXPECT_LT(worst_slope([](const List& in) { return hadamard(in[0]); }, {leaf({3, 32})}), kBar);
}

// Rounding has no slope; straight-through is defined as the identity.
TEST_P(Differences, SimulatedFp8IsStraightThrough) {
  at::manual_seed(4);
  auto x = leaf({3, 130}), direction = at::randn({3, 130});
  simulate_fp8(x).backward(direction);
  EXPECT_TRUE(at::equal(x.grad(), direction));
}

TEST_P(Differences, Routing) {
  at::manual_seed(5);
  auto logits = leaf({9, 12});
  auto ids = route(logits, at::zeros({12}), {4, 2, 3});
  for (bool normalise : {true, false})
    EXPECT_LT(worst_slope([&](const List& in) { return route_weights(in[0], ids, normalise, 2.5); }, {leaf({9, 12})}), kBar);
  auto starts = ints({0, 2, 9}, {3});
  // A loss of about 1 with slopes of about .02: its rounding is that much larger beside them.
  EXPECT_LT(worst_slope([&](const List& in) { return balance_loss(in[0], ids, starts); }, {logits}), 10 * kBar);
}

TEST_P(Differences, Experts) {
  at::manual_seed(6);
  EXPECT_LT(worst_slope([](const List& in) { return swiglu(in[0], in[1]); }, {leaf({3, 19}), leaf({3, 19})}), kBar);
  auto ids = ints({0, 2, 1, 2, 0, 1, 0, 2}, {4, 2});  // the fourth expert gets no token
  auto op = [&](const List& in) { return experts(in[0], ids, in[1], in[2], in[3], in[4], in[5]); };
  EXPECT_LT(worst_slope(op, {leaf({4, 6}), leaf({4, 2}), leaf({4, 5, 6}), leaf({4, 5, 6}), leaf({4, 6, 5}), leaf({4, 6})}), kBar);
}

TEST_P(Differences, LogProbabilities) {
  at::manual_seed(7);
  auto targets = ints({5, 0, -1, 22, 5}, {5});
  EXPECT_LT(worst_slope([&](const List& in) { return log_prob(in[0], in[1], targets); }, {leaf({5, 7}), leaf({23, 7})}), kBar);
}

// Two documents of three and five tokens.
const std::vector<int> kVisible = {0, 1, 0, 2, 0, 3, 3, 4, 3, 5, 3, 6, 3, 7, 3, 8};

TEST_P(Differences, Attention) {
  at::manual_seed(8);
  auto visible = ints(kVisible, {8, 2});
  auto dense = [&](const List& in) { return std::get<0>(dense_mla(in[0], in[1], in[2], visible, 0.3)); };
  EXPECT_LT(worst_slope(dense, {leaf({8, 2, 6}), leaf({8, 2, 6}), leaf({8, 2, 5})}), kBar);
  auto selected = ints({0, -1, -1, 0, 1, -1, 1, 2, -1, 3, -1, -1, 3, 4, -1, 3, 4, 5, 4, 5, 6, 3, 6, 7}, {8, 3});
  auto sparse = [&](const List& in) { return std::get<0>(sparse_mla(in[0], in[1], selected, 7, 0.3)); };
  EXPECT_LT(worst_slope(sparse, {leaf({8, 3, 10}), leaf({8, 10})}), kBar);
}

// q, k and w of an indexer whose ReLUs all stand well away from their kinks, which differences would step over.
List without_kinks() {
  for (;;) {
    List in{leaf({8, 2, 4}), leaf({8, 4}), leaf({8, 2})};
    auto pre = at::einsum("njd,sd->njs", {in[0].detach(), in[1].detach()}).abs();
    if (pre.min().item<float>() > 0.08) return in;
  }
}

TEST_P(Differences, IndexerLosses) {
  at::manual_seed(9);
  auto visible = ints(kVisible, {8, 2});
  auto aq = at::randn({8, 3, 6}), ak = at::randn({8, 3, 6});
  auto lse = std::get<1>(dense_mla(aq, ak, ak, visible, 0.3));
  auto dense = [&](const List& in) { return indexer_kl_dense(in[0], in[1], in[2], aq, ak, lse, visible, 0.3); };
  EXPECT_LT(worst_slope(dense, without_kinks()), kBar);
  auto in = without_kinks();
  auto selected = indexer_top_k(in[0], in[1], in[2], visible, 3);
  auto target = at::rand({8, 3}) * (selected >= 0);
  target = target / target.sum(1, true);
  auto sparse = [&](const List& in) { return indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
  EXPECT_LT(worst_slope(sparse, in), kBar);
}

}  // namespace
}  // namespace fulgur::ops
