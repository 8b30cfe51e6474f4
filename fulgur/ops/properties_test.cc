// What holds for every input of top-k and of routing, on cases that rapidcheck draws and then shrinks.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/router/router.h"
#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

// Few distinct values, so that ties are common; both zeros, infinities, NaN.
rc::Gen<float> score() {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  return rc::gen::weightedOneOf<float>(
      {{6, rc::gen::map(rc::gen::inRange(-3, 4), [](int i) { return float(i) / 2; })},
       {3, rc::gen::map(rc::gen::arbitrary<int>(), [](int i) { return float(i) * 1e-6f; })},
       {1, rc::gen::element(0.0f, -0.0f, kInf, -kInf, std::numeric_limits<float>::quiet_NaN(), 1e-45f, -1e-45f)}});
}

// The rule in words: NaN is lowest, larger scores first, then the smaller index.
bool before(const std::vector<float>& scores, int a, int b) {
  float x = scores[a], y = scores[b];
  if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
  return std::isnan(x) || x == y ? a < b : x > y;
}

std::vector<int> selected(const std::vector<float>& scores, int64_t length, int64_t k) {
  auto row = at::tensor(scores).unsqueeze(0);
  auto out = top_k(row, at::full({1}, length, at::kInt), k);
  return {out.const_data_ptr<int>(), out.const_data_ptr<int>() + k};
}

RC_GTEST_PROP(TopKProperties, TakesTheBestInAscendingOrderAndPadsWithMinusOne, ()) {
  auto scores = *rc::gen::nonEmpty(rc::gen::container<std::vector<float>>(score()));
  auto length = *rc::gen::inRange<int64_t>(0, int64_t(scores.size()) + 1);
  auto k = *rc::gen::inRange<int64_t>(1, 2 * int64_t(scores.size()) + 2);
  auto got = selected(scores, length, k);
  auto taken = size_t(std::min(k, length));
  std::vector<bool> in(length);
  for (size_t i = 0; i < got.size(); ++i) {
    RC_ASSERT((i < taken ? got[i] >= 0 && got[i] < length : got[i] == -1));
    if (i < taken) in[got[i]] = true;
    RC_ASSERT((i == 0 || i >= taken || got[i] > got[i - 1]));
  }
  for (int chosen = 0; chosen < length; ++chosen)
    for (int other = 0; other < length; ++other)
      if (in[chosen] && !in[other]) RC_ASSERT(before(scores, chosen, other));
}

RC_GTEST_PROP(TopKProperties, OneMoreAddsOneKeyAndKeepsTheOthers, ()) {
  auto scores = *rc::gen::nonEmpty(rc::gen::container<std::vector<float>>(score()));
  auto length = int64_t(scores.size());
  auto k = *rc::gen::inRange<int64_t>(1, length + 1);
  auto fewer = selected(scores, length, k), more = selected(scores, length, k + 1);
  RC_ASSERT(std::includes(more.begin(), more.begin() + std::min(k + 1, length), fewer.begin(), fewer.end()));
}

RC_GTEST_PROP(TopKProperties, KeysBehindTheLengthDoNotMatter, ()) {
  auto scores = *rc::gen::nonEmpty(rc::gen::container<std::vector<float>>(score()));
  auto length = *rc::gen::inRange<int64_t>(0, int64_t(scores.size()) + 1);
  auto k = *rc::gen::inRange<int64_t>(1, 20);
  auto got = selected(scores, length, k);
  std::fill(scores.begin() + length, scores.end(), std::numeric_limits<float>::infinity());
  RC_ASSERT(selected(scores, length, k) == got);
}

struct Routing {
  RouterShape shape;
  at::Tensor logits_NE, bias_E;
  int64_t per_group() const { return bias_E.size(0) / shape.n_group; }
};

Routing draw_routing() {
  auto groups = *rc::gen::inRange<int64_t>(1, 6), per_group = *rc::gen::inRange<int64_t>(1, 7);
  auto topk_group = *rc::gen::inRange<int64_t>(1, groups + 1), k = *rc::gen::inRange<int64_t>(1, topk_group * per_group + 1);
  auto rows = *rc::gen::inRange<int64_t>(1, 5), experts = groups * per_group;
  auto finite = rc::gen::map(rc::gen::inRange(-40, 41), [](int i) { return float(i) / 8; });
  auto logits = *rc::gen::container<std::vector<float>>(size_t(rows * experts), finite);
  auto bias = *rc::gen::container<std::vector<float>>(size_t(experts), finite);
  return {{groups, topk_group, k}, at::tensor(logits).view({rows, experts}), at::tensor(bias)};
}

RC_GTEST_PROP(RoutingProperties, ChoosesDistinctExpertsOfTheBestGroups, ()) {
  auto r = draw_routing();
  auto ids = route(r.logits_NE, r.bias_E, r.shape);
  auto biased = r.logits_NE.sigmoid() + r.bias_E;
  for (int64_t n = 0; n < ids.size(0); ++n) {
    std::vector<bool> chosen(r.bias_E.size(0)), group(r.shape.n_group);
    for (int64_t i = 0; i < r.shape.experts_per_token; ++i) {
      int id = ids[n][i].item<int>();
      RC_ASSERT((id >= 0 && id < int(chosen.size()) && !chosen[id]));
      RC_ASSERT((i == 0 || id > ids[n][i - 1].item<int>()));
      chosen[id] = group[id / r.per_group()] = true;
    }
    RC_ASSERT(std::count(group.begin(), group.end(), true) <= r.shape.topk_group);
    // Within a group that was chosen from, nobody who was passed over is better.
    for (size_t a = 0; a < chosen.size(); ++a)
      for (size_t b = 0; b < chosen.size(); ++b)
        if (chosen[a] && !chosen[b] && group[b / r.per_group()])
          RC_ASSERT(biased[n][int64_t(a)].item<float>() >= biased[n][int64_t(b)].item<float>() - 1e-6f);
  }
}

RC_GTEST_PROP(RoutingProperties, ARowsRouteDoesNotDependOnItsNeighbours, ()) {
  auto r = draw_routing();
  auto all = route(r.logits_NE, r.bias_E, r.shape);
  auto order = *rc::gen::container<std::vector<int64_t>>(rc::gen::inRange<int64_t>(0, r.logits_NE.size(0)));
  RC_PRE(!order.empty());
  auto rows = at::tensor(order);
  RC_ASSERT(at::equal(route(r.logits_NE.index_select(0, rows), r.bias_E, r.shape), all.index_select(0, rows)));
}

RC_GTEST_PROP(RoutingProperties, WeightsArePositiveAddUpToTheScaleAndIgnoreTheBias, ()) {
  auto r = draw_routing();
  auto ids = route(r.logits_NE, r.bias_E, r.shape);
  auto weights = route_weights(r.logits_NE, ids, true, 2.5);
  RC_ASSERT((weights > 0).all().item<bool>());
  RC_ASSERT((weights.sum(1) - 2.5).abs().max().item<float>() < 1e-5f);
  auto plain = route_weights(r.logits_NE, ids, false, 1);
  RC_ASSERT((plain - r.logits_NE.sigmoid().gather(1, ids.to(at::kLong))).abs().max().item<float>() < 1e-6f);
}

RC_GTEST_PROP(RoutingProperties, ARaisedBiasNeverLosesItsExpertAToken, ()) {
  auto r = draw_routing();
  auto expert = *rc::gen::inRange<int64_t>(0, r.bias_E.size(0));
  auto tokens = [&] { return (route(r.logits_NE, r.bias_E, r.shape) == expert).any(1); };
  auto before = tokens();
  r.bias_E[expert] += 0.5;
  RC_ASSERT(((tokens() | before.logical_not()).all().item<bool>()));
}

RC_GTEST_PROP(RoutingProperties, BalanceIsLeastWhereEveryExpertIsChosenEquallyOften, ()) {
  auto experts = *rc::gen::inRange<int64_t>(2, 9);
  auto even = at::arange(experts, at::kInt).unsqueeze(1), ends = at::tensor({0, int(experts)}, at::kInt);
  auto same = at::zeros({experts, experts});
  // f = 1 and P = 1/E for all: the loss is 1, and with every token at one expert that all prefer it is larger.
  RC_ASSERT(std::abs(balance_loss(same, even, ends).item<float>() - 1) < 1e-5f);
  auto one = *rc::gen::inRange<int64_t>(0, experts);
  auto crowd = same.clone();
  crowd.select(1, one).fill_(3);
  RC_ASSERT(balance_loss(crowd, at::full({experts, 1}, one, at::kInt), ends).item<float>() > 1.1f);
}

}  // namespace
}  // namespace fulgur::ops
