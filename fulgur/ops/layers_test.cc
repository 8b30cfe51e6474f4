// Norms, rotation, routing, experts, embedding, log-probabilities and AdamW against their references.
#include "fulgur/ops/adamw/adamw.h"
#include "fulgur/ops/embedding/embedding.h"
#include "fulgur/ops/experts/experts.h"
#include "fulgur/ops/log_prob/log_prob.h"
#include "fulgur/ops/norm/norm.h"
#include "fulgur/ops/rope/rope.h"
#include "fulgur/ops/router/router.h"
#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

using List = std::vector<at::Tensor>;

at::Tensor leaf(at::IntArrayRef shape) { return at::randn(shape).requires_grad_(); }

FULGUR_EACH_ISA(Layers);

TEST_P(Layers, NormsAndTheirGradientsEqualTheReference) {
  at::manual_seed(1);
  for (int64_t D : {5, 16, 33, 130}) {
    auto rms = [](const List& in) { return rms_norm(in[0], in[1], 1e-6); };
    auto rms_reference = [](const List& in) { return reference::rms_norm(in[0], in[1], 1e-6); };
    EXPECT_LT(worst_difference(rms, rms_reference, {leaf({70, D}), leaf({D})}), 3e-6) << D;
    auto add = [](const List& in) {
      auto [y, sum] = add_rms_norm(in[0], in[1], in[2], 1e-6);
      return y + sum * 0.5;
    };
    auto add_reference = [](const List& in) { return reference::rms_norm(in[0] + in[1], in[2], 1e-6) + (in[0] + in[1]) * 0.5; };
    EXPECT_LT(worst_difference(add, add_reference, {leaf({70, D}), leaf({70, D}), leaf({D})}), 3e-6) << D;
    auto layer = [](const List& in) { return layer_norm(in[0], in[1], in[2], 1e-6); };
    auto layer_reference = [](const List& in) { return reference::layer_norm(in[0], in[1], in[2], 1e-6); };
    EXPECT_LT(worst_difference(layer, layer_reference, {leaf({70, D}), leaf({D}), leaf({D})}), 1e-5) << D;
  }
}

TEST_P(Layers, NoRowsGiveNoRowsAndZeroGradientsOfWeights) {
  auto x = leaf({0, 9}), weight = leaf({9}), bias = leaf({9}), table = leaf({5, 9});
  auto y = layer_norm(x, weight, bias, 1e-6) + rms_norm(x, weight, 1e-6) + embedding(table, at::empty({0}, at::kInt), at::kFloat);
  EXPECT_EQ(y.sizes(), x.sizes());
  y.backward(at::empty({0, 9}));
  for (const auto& leaf : {weight, bias, table}) EXPECT_TRUE(at::equal(leaf.grad(), at::zeros_like(leaf)));
  EXPECT_EQ(route(x, at::zeros({9}), {3, 2, 4}).sizes(), at::IntArrayRef({0, 4}));
}

TEST_P(Layers, ANormsRowDoesNotDependOnItsBatchAndNaNStaysInIt) {
  at::manual_seed(9);
  auto x = at::randn({40, 300}), weight = at::randn({300}), bias = at::randn({300});
  auto rms = rms_norm(x, weight, 1e-6), layer = layer_norm(x, weight, bias, 1e-6);
  x[20][299] = NAN;
  auto spoilt_rms = rms_norm(x, weight, 1e-6), spoilt_layer = layer_norm(x, weight, bias, 1e-6);
  for (int64_t i = 0; i < 40; ++i) {
    if (i == 20) {
      EXPECT_TRUE((spoilt_rms[i].isnan().all() & spoilt_layer[i].isnan().all()).item<bool>());
    } else {
      EXPECT_TRUE(at::equal(spoilt_rms[i], rms[i]) && at::equal(spoilt_layer[i], layer[i]));
      EXPECT_TRUE(at::equal(rms_norm(x[i], weight, 1e-6), rms[i]));
      EXPECT_TRUE(at::equal(layer_norm(x[i], weight, bias, 1e-6), layer[i]));
    }
  }
}

TEST_P(Layers, RotationEqualsTheReferenceInBothPairings) {
  at::manual_seed(2);
  auto turn = rotation(at::arange(9) * 13, {1.0f, 0.3f, 0.01f});
  for (auto pairing : {Pairing::adjacent, Pairing::halves}) {
    auto op = [&](const List& in) { return rope(in[0].narrow(2, 1, 11), turn, 2, pairing); };
    auto expected = [&](const List& in) { return reference::rope(in[0].narrow(2, 1, 11), turn, 2, pairing); };
    EXPECT_LT(worst_difference(op, expected, {leaf({9, 3, 14})}), 1e-6);
  }
}

TEST_P(Layers, RoutingEqualsTheReference) {
  at::manual_seed(3);
  auto logits = at::randn({200, 24}), bias = at::randn({24}) * 0.5;
  RouterShape shape{6, 3, 5};
  auto ids = route(logits, bias, shape);
  EXPECT_TRUE(at::equal(ids, reference::route(logits, bias, shape)));
  for (bool normalise : {true, false}) {
    auto op = [&](const List& in) { return route_weights(in[0], ids, normalise, 2.5); };
    auto expected = [&](const List& in) { return reference::route_weights(in[0], ids, normalise, 2.5); };
    EXPECT_LT(worst_difference(op, expected, {logits.clone().requires_grad_()}), 2e-6);
  }
  auto starts = at::tensor({0, 50, 51, 200}, at::kInt);
  auto op = [&](const List& in) { return balance_loss(in[0], ids, starts); };
  auto expected = [&](const List& in) { return reference::balance_loss(in[0], ids, starts); };
  EXPECT_LT(worst_difference(op, expected, {logits.clone().requires_grad_()}), 1e-5);
}

TEST_P(Layers, RoutingKeepsTheOrderOfTiesInTheOfficialShape) {
  at::manual_seed(10);
  auto logits = at::randint(-6, 7, {300, 256}).to(at::kFloat) / 4;
  logits[7] = NAN;
  auto ids = route(logits, at::zeros({256}), {8, 4, 8});
  auto expected = reference::route(logits, at::zeros({256}), {8, 4, 8});
  expected[7] = at::arange(8, at::kInt);
  EXPECT_TRUE(at::equal(ids, expected));
}

TEST_P(Layers, ExpertsAndTheirGradientsEqualTheReferenceAlsoWithoutTokens) {
  at::manual_seed(4);
  auto ids = std::get<0>(at::randint(0, 6, {40, 3}).sort(1)).to(at::kInt);  // expert 6 and 7 get no token
  auto op = [&](const List& in) { return experts(in[0], ids, in[1], in[2], in[3], in[4], in[5]); };
  auto expected = [&](const List& in) { return reference::experts(in[0], ids, in[1], in[2], in[3], in[4], in[5]); };
  List inputs{leaf({40, 20}), leaf({40, 3}), leaf({8, 13, 20}), leaf({8, 13, 20}), leaf({8, 20, 13}), leaf({40, 20})};
  // An id twice in a row is not a routing the router makes; keep them distinct.
  for (int64_t i = 0; i < 40; ++i)
    for (int64_t j = 0; j < 3; ++j) ids[i][j] = (i % 2) * 2 + j + (i % 3 == 0);
  EXPECT_LT(worst_difference(op, expected, inputs), 3e-6);
}

TEST_P(Layers, ExpertsRowsDoNotDependOnTheBatch) {
  at::manual_seed(5);
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto x = at::randn({64, 40}).to(type), shared = at::randn({64, 40}).to(type), weights = at::rand({64, 2});
    auto gate = at::randn({4, 24, 40}), up = at::randn({4, 24, 40}), down = at::randn({4, 40, 24});
    auto first = at::randint(0, 2, {64, 1}), ids = at::cat({first, first + 1 + at::randint(0, 2, {64, 1})}, 1).to(at::kInt);
    auto all = experts(x, ids, weights, gate, up, down, shared);
    for (int64_t rows : {1, 5, 30}) {
      auto part = [&](const at::Tensor& t) { return t.narrow(0, 20, rows); };
      EXPECT_TRUE(at::equal(experts(part(x), part(ids), part(weights), gate, up, down, part(shared)), part(all)));
    }
  }
}

TEST_P(Layers, SwigluEqualsTheReference) {
  at::manual_seed(6);
  EXPECT_LT(worst_difference([](const List& in) { return swiglu(in[0], in[1]); },
                             [](const List& in) { return reference::swiglu(in[0], in[1]); }, {leaf({37, 19}), leaf({37, 19})}),
            2e-6);
}

TEST_P(Layers, LogProbabilitiesEqualTheReferenceAndSkipMinusOne) {
  at::manual_seed(7);
  auto targets = at::randint(0, 77, {600}, at::kInt);
  targets[3] = -1, targets[599] = -1;
  auto op = [&](const List& in) { return log_prob(in[0], in[1], targets); };
  auto expected = [&](const List& in) { return reference::log_prob(in[0], in[1], targets); };
  EXPECT_LT(worst_difference(op, expected, {leaf({600, 18}), leaf({77, 18})}), 5e-6);
  auto mean = [](const Op& f) { return Op([f](const List& in) { return f(in).sum() / 600; }); };
  EXPECT_LT(worst_difference(mean(op), mean(expected), {leaf({600, 18}), leaf({77, 18})}), 5e-6);
  EXPECT_THROW(log_prob(at::zeros({1, 2}), at::zeros({3, 2}), at::full({1}, 3, at::kInt)), InputError);
}

// A third of the rows keep everything, the others some tokens, their target among them.
Kept some_kept(const at::Tensor& targets_N, int64_t V) {
  std::vector<int32_t> offsets{0}, ids;
  for (int64_t i = 0; i < targets_N.size(0); ++i) {
    for (int32_t token = 0; i % 3 > 0 && token < V; ++token)
      if ((token * 31 + i) % 7 < 2 || token == targets_N[i].item<int>()) ids.push_back(token);
    offsets.push_back(int32_t(ids.size()));
  }
  return {at::tensor(offsets, at::kInt), at::tensor(ids, at::kInt)};
}

TEST_P(Layers, KeptLogProbabilitiesEqualTheReference) {
  at::manual_seed(11);
  auto targets = at::randint(0, 77, {600}, at::kInt);
  targets[3] = -1, targets[599] = -1;
  auto kept = some_kept(targets, 77);
  for (double temperature : {1.0, 0.6}) {
    auto op = [&](const List& in) { return kept_log_prob(in[0], in[1], targets, kept, temperature).first; };
    auto expected = [&](const List& in) { return reference::kept_log_prob(in[0], in[1], targets, kept, temperature).first; };
    List inputs{leaf({600, 18}), leaf({77, 18})};
    EXPECT_LT(worst_difference(op, expected, inputs), 5e-6);
    EXPECT_LT(relative(kept_log_prob(inputs[0], inputs[1], targets, kept, temperature).second,
                       reference::kept_log_prob(inputs[0], inputs[1], targets, kept, temperature).second),
              5e-6);
  }
}

TEST_P(Layers, KeptLogProbabilitiesAreTheSamplersToTheBit) {
  at::manual_seed(12);
  auto targets = at::randint(0, 77, {60}, at::kInt);
  auto kept = some_kept(targets, 77);
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto x = at::randn({60, 18}).to(type), weight = at::randn({77, 18});
    auto all = kept_log_prob(x, weight, targets, kept, 0.7).first, rows = logits(x, weight);
    for (int64_t i = 0; i < 60; ++i) {
      int begin = kept.offsets_N1[i].item<int>(), end = kept.offsets_N1[i + 1].item<int>();
      std::span<const int32_t> of{kept.ids.const_data_ptr<int>() + begin, size_t(end - begin)};
      EXPECT_EQ(kept_log_prob({rows.const_data_ptr<float>() + i * 77, 77}, of, 0.7, targets[i].item<int>()),
                all[i].item<float>());
    }
    // With nothing left out and at temperature 1 they are the model's own.
    Kept everything{at::zeros({61}, at::kInt), at::empty({0}, at::kInt)};
    EXPECT_TRUE(at::equal(kept_log_prob(x, weight, targets, everything, 1).first, log_prob(x, weight, targets)));
  }
  auto outside = [&](int32_t token) {
    return kept_log_prob(at::zeros({1, 2}), at::zeros({3, 2}), at::full({1}, token, at::kInt),
                         {at::tensor({0, 2}, at::kInt), at::tensor({0, 2}, at::kInt)}, 1);
  };
  EXPECT_NO_THROW(outside(2));
  EXPECT_THROW(outside(1), InputError);
}

TEST_P(Layers, EmbeddingAddsGradientsOfEqualTokensAndZeroesMinusOne) {
  at::manual_seed(8);
  auto ids = at::randint(-1, 9, {500}, at::kInt);
  EXPECT_LT(worst_difference([&](const List& in) { return embedding(in[0], ids, at::kFloat); },
                             [&](const List& in) { return reference::embedding(in[0], ids, at::kFloat); }, {leaf({9, 70})}),
            1e-5);
  auto half = at::randn({9, 70}).to(at::kBFloat16);
  for (auto type : {at::kFloat, at::kBFloat16})
    EXPECT_TRUE(at::equal(embedding(half, ids, type), reference::embedding(half.to(at::kFloat), ids, type)));
}

TEST_P(Layers, AdamwEqualsTheReferenceOverSteps) {
  at::manual_seed(9);
  auto p = at::randn({1003}), m = at::zeros({1003}), v = at::zeros({1003});
  auto p2 = p.clone(), m2 = m.clone(), v2 = v.clone();
  for (int64_t step = 1; step <= 5; ++step) {
    auto g = at::randn({1003});
    AdamwStep s{.lr = 1e-2, .beta1 = .9, .beta2 = .95, .eps = 1e-8, .weight_decay = .1, .step = step, .grad_scale = .5};
    adamw(p, g, m, v, s);
    reference::adamw(p2, g, m2, v2, s);
  }
  EXPECT_LT(relative(p, p2), 1e-6);
  EXPECT_NEAR(sum_of_squares(p), (p.to(at::kDouble).square().sum()).item<double>(), 1e-3);
}

}  // namespace
}  // namespace fulgur::ops
