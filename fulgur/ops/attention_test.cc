// Dense and sparse attention and the indexer's losses against their references, and against each other.
#include <torch/csrc/autograd/autograd.h>

#include "fulgur/base/error.h"
#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"
#include "fulgur/ops/pages.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"
#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

using List = std::vector<at::Tensor>;

at::Tensor leaf(at::IntArrayRef shape) { return at::randn(shape).requires_grad_(); }

// Causal key ranges of documents packed one after another.
at::Tensor documents(const std::vector<int>& lengths) {
  std::vector<int> ranges;
  int begin = 0;
  for (int length : lengths) {
    for (int i = 0; i < length; ++i) ranges.insert(ranges.end(), {begin, begin + i + 1});
    begin += length;
  }
  return at::tensor(ranges, at::kInt).view({-1, 2});
}

FULGUR_EACH_ISA(AttentionOps);

TEST_P(AttentionOps, DenseEqualsTheReferenceOverSeveralDocuments) {
  at::manual_seed(1);
  for (const auto& lengths : {std::vector<int>{4, 1}, {5, 130, 1, 70}, {200}}) {
    auto visible = documents(lengths);
    int64_t N = visible.size(0);
    auto op = [&](const List& in) { return std::get<0>(dense_mla(in[0], in[1], in[2], visible, 0.2)); };
    auto expected = [&](const List& in) { return std::get<0>(reference::dense_mla(in[0], in[1], in[2], visible, 0.2)); };
    List inputs{leaf({N, 3, 21}), leaf({N, 3, 21}), leaf({N, 3, 13})};
    EXPECT_LT(worst_difference(op, expected, inputs), 5e-6);
    EXPECT_LT(relative(std::get<1>(dense_mla(inputs[0], inputs[1], inputs[2], visible, 0.2)),
                       std::get<1>(reference::dense_mla(inputs[0], inputs[1], inputs[2], visible, 0.2))),
              2e-6);
    List half;
    for (auto& x : inputs) half.push_back(x.detach().to(at::kBFloat16).requires_grad_());
    EXPECT_LT(worst_difference(op, expected, half), 2e-2);
  }
}

TEST_P(AttentionOps, DenseRowsDoNotDependOnChunksBatchOrThreads) {
  at::manual_seed(2);
  auto visible = documents({150, 90});
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto q = at::randn({240, 2, 24}).to(type), k = at::randn({240, 2, 24}).to(type), v = at::randn({240, 2, 16}).to(type);
    auto all = std::get<0>(dense_mla(q, k, v, visible, 0.3));
    for (auto [first, rows] : {std::pair{0, 1}, {149, 1}, {60, 100}, {199, 7}, {150, 90}}) {
      auto part = std::get<0>(dense_mla(q.narrow(0, first, rows), k, v, visible.narrow(0, first, rows), 0.3));
      EXPECT_TRUE(at::equal(part, all.narrow(0, first, rows))) << first << " " << rows;
    }
    int before = threads();
    set_threads(before == 1 ? 2 : 1);
    EXPECT_TRUE(at::equal(std::get<0>(dense_mla(q, k, v, visible, 0.3)), all));
    set_threads(before);
  }
}

TEST_P(AttentionOps, HeadsThatShareKeysHaveTheBitsOfKeysOfTheirOwn) {
  at::manual_seed(3);
  auto visible = documents({130, 40});
  for (auto type : {at::kFloat, at::kBFloat16}) {
    auto q = at::randn({170, 6, 24}).to(type), k = at::randn({170, 2, 24}).to(type), v = at::randn({170, 2, 16}).to(type);
    auto own = [](const at::Tensor& shared) { return shared.repeat_interleave(3, 1).contiguous(); };
    auto [out, lse] = dense_mla(q, k, v, visible, 0.3);
    auto [expected, expected_lse] = dense_mla(q, own(k), own(v), visible, 0.3);
    EXPECT_TRUE(at::equal(out, expected));
    EXPECT_TRUE(at::equal(lse, expected_lse));
    EXPECT_THROW(dense_mla(q, k.narrow(1, 0, 1).repeat({1, 4, 1}), v, visible, 0.3), InputError);
  }
}

// A causal selection of every third key, the row itself among them, -1 behind.
at::Tensor every_third(int64_t rows, int64_t k) {
  auto selected = at::full({rows, k}, -1, at::kInt);
  for (int64_t t = 0; t < rows; ++t) {
    int64_t at = 0;
    for (int64_t s = t % 3; s <= t && at < k; s += 3) selected[t][at++] = int(s);
  }
  return selected;
}

TEST_P(AttentionOps, SparseEqualsTheReferenceAndNeverReadsWhatIsNotSelected) {
  at::manual_seed(3);
  for (auto [N, H, rank, P, K] : {std::array{7, 1, 8, 2, 3}, {70, 5, 19, 6, 11}, {40, 4, 32, 16, 64}}) {
    int64_t R = rank;  // a lambda of C++20 may capture it, but not before clang 16
    auto selected = every_third(N, K);
    auto op = [&](const List& in) { return std::get<0>(sparse_mla(in[0], in[1], selected, R, 0.2)); };
    auto expected = [&](const List& in) { return std::get<0>(reference::sparse_mla(in[0], in[1], selected, R, 0.2)); };
    List inputs{leaf({N, H, R + P}), leaf({N, R + P})};
    EXPECT_LT(worst_difference(op, expected, inputs), 5e-6);
    auto target = std::get<2>(sparse_mla(inputs[0], inputs[1], selected, R, 0.2));
    EXPECT_LT(relative(target, std::get<2>(reference::sparse_mla(inputs[0], inputs[1], selected, R, 0.2))), 3e-6);
    EXPECT_LT(relative(target.sum(1), at::ones({N})), 1e-5);
    List half{inputs[0].detach().to(at::kBFloat16).requires_grad_(), inputs[1].detach().to(at::kBFloat16).requires_grad_()};
    EXPECT_LT(worst_difference(op, expected, half), 2e-2);
  }
  auto kv = at::randn({10, 12}), q = at::randn({2, 3, 12});
  auto selected = at::tensor({1, 4, -1, -1, -1, -1}, at::kInt).view({2, 3});
  auto clean = std::get<0>(sparse_mla(q, kv, selected, 8, 0.5));
  kv[0].fill_(NAN), kv[5].fill_(NAN);
  EXPECT_TRUE(at::equal(std::get<0>(sparse_mla(q, kv, selected, 8, 0.5)), clean));
  EXPECT_EQ(clean[1].abs().max().item<float>(), 0);  // no key at all
}

// One long document goes by ranges of keys, several by bundles of rows; few heads and many have kernels of their own.
TEST_P(AttentionOps, GradientsOfSelectedKeysEqualTheReferenceAndDoNotDependOnThreads) {
  at::manual_seed(12);
  int before = threads();
  for (int64_t H : {2, 7, 9, 20})
    for (const auto& lengths : {std::vector<int>{130}, {20, 1, 60, 49}}) {
      auto visible = documents(lengths);
      auto iq = leaf({130, H, 19}), ik = leaf({130, 19}), iw = leaf({130, H});
      auto selected = indexer_top_k(iq, ik, iw, visible, 30);
      auto target = at::rand({130, 30}) * (selected >= 0);
      target = target / target.sum(1, true);
      auto attend = [&](const List& in) { return std::get<0>(sparse_mla(in[0], in[1], selected, 17, 0.2)); };
      auto attend_expected = [&](const List& in) { return std::get<0>(reference::sparse_mla(in[0], in[1], selected, 17, 0.2)); };
      auto kl = [&](const List& in) { return indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
      auto kl_expected = [&](const List& in) { return reference::indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
      List qkv{leaf({130, H, 22}), leaf({130, 22})}, index{iq, ik, iw};
      EXPECT_LT(worst_difference(attend, attend_expected, qkv), 1e-5);
      EXPECT_LT(worst_difference(kl, kl_expected, index), 1e-5);
      auto gradients = [&](int count) {
        set_threads(count);
        auto all = torch::autograd::grad({attend(qkv).sum(), kl(index).sum()}, {qkv[0], qkv[1], iq, ik, iw});
        set_threads(before);
        return all;
      };
      auto one = gradients(1);
      for (int count : {2, 5}) {
        auto more = gradients(count);
        for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], more[i])) << H << " " << count << " " << i;
      }
    }
}

TEST_P(AttentionOps, NoRowsAndNoKeysHaveGradientsToo) {
  for (auto [N, K] : {std::pair{0, 3}, {4, 0}, {0, 0}, {4, 2}}) {
    auto q = leaf({N, 3, 12}), kv = leaf({6, 12}), iq = leaf({N, 2, 5}), ik = leaf({6, 5}), iw = leaf({N, 2});
    auto none = at::full({N, K}, -1, at::kInt);
    auto sum = std::get<0>(sparse_mla(q, kv, none, 8, 0.5)).sum() + indexer_kl_sparse(iq, ik, iw, none, at::zeros({N, K})).sum();
    EXPECT_EQ(sum.item<float>(), 0);
    for (const auto& gradient : torch::autograd::grad({sum}, {q, kv, iq, ik, iw}))
      EXPECT_TRUE(at::equal(gradient, at::zeros_like(gradient)));
  }
}

// Pages in any order hold the same keys: the same scores, selections and sums, bit for bit. Heads of 300 are longer than a chain.
TEST_P(AttentionOps, KeysInPagesGiveTheBitsOfKeysInARow) {
  at::manual_seed(13);
  auto pages = at::tensor({6, 0, 3, 1, 5}, at::kInt);
  auto paged = [&](const at::Tensor& keys) {  // [320, ...] -> [7 * 64, ...]
    auto all = at::full({7, kPageKeys, keys[0].numel()}, NAN, keys.options());
    all.index_copy_(0, pages.to(at::kLong), keys.reshape({5, kPageKeys, -1}));
    auto sizes = keys.sizes().vec();
    sizes[0] = 7 * kPageKeys;
    return all.view(sizes);
  };
  auto side_by_side = [&](const at::Tensor& keys) { return paged(keys).view({7, kPageKeys, -1}).transpose(1, 2).contiguous(); };
  auto visible = at::tensor({0, 128, 0, 1, 128, 300, 128, 320, 256, 319}, at::kInt).view({5, 2});
  for (auto type : {at::kFloat, at::kBFloat16})
    for (int64_t D : {18, 64, 300}) {
      auto random = [&](at::IntArrayRef sizes) { return at::randn(sizes).to(type); };
      auto iq = random({5, 3, D}), ik = random({320, D}), iw = at::randn({5, 3}), q = random({5, 4, 20}), kv = random({320, 20});
      EXPECT_TRUE(at::equal(indexer_scores(iq, side_by_side(ik), iw, visible, pages), indexer_scores(iq, ik, iw, visible)));
      auto selected = indexer_top_k(iq, ik, iw, visible, 40);
      EXPECT_TRUE(at::equal(indexer_top_k(iq, side_by_side(ik), iw, visible, 40, pages), selected));
      // Key by key, as attention has them: groups, each behind values of its own.
      auto groups = random({320, 2, D}), gq = random({5, 6, D}), gw = at::randn({5, 6});
      auto among_values = paged(at::cat({random({320, 2, 7}), groups}, 2)).view({7, kPageKeys, 2, 7 + D}).narrow(3, 7, D);
      EXPECT_TRUE(at::equal(indexer_scores(gq, among_values, gw, visible, pages), indexer_scores(gq, groups, gw, visible)));
      EXPECT_TRUE(at::equal(indexer_top_k(gq, among_values, gw, visible, 40, pages), indexer_top_k(gq, groups, gw, visible, 40)));
      auto got = sparse_mla(q, paged(kv), selected, 16, 0.3, pages), expected = sparse_mla(q, kv, selected, 16, 0.3);
      EXPECT_TRUE(at::equal(std::get<0>(got), std::get<0>(expected)));
      EXPECT_TRUE(at::equal(std::get<2>(got), std::get<2>(expected)));
      auto k = random({320, 4, 6}), v = random({320, 4, 5}), dq = random({5, 4, 6});
      EXPECT_TRUE(at::equal(std::get<0>(dense_mla(dq, paged(k), paged(v), visible, 0.3, pages)),
                            std::get<0>(dense_mla(dq, k, v, visible, 0.3))));
    }
  auto keys = at::randn({7 * kPageKeys, 20}), q = at::randn({1, 2, 10}), k = keys.view({-1, 2, 10});
  for (int page : {-1, 7})
    EXPECT_THROW(sparse_mla(q.view({1, 1, 20}), keys, at::zeros({1, 1}, at::kInt), 16, 0.3, at::full({1}, page, at::kInt)),
                 InputError);
  dense_mla(q, k, k, at::tensor({64, 70}, at::kInt).view({1, 2}), 0.3, pages);
  EXPECT_THROW(dense_mla(q, k, k, at::tensor({3, 9}, at::kInt).view({1, 2}), 0.3, pages), InputError);
}

TEST(Selection, MustAscendWithPaddingLast) {
  auto q = at::randn({1, 2, 12}), kv = at::randn({10, 12});
  auto attend = [&](const std::vector<int>& keys) { sparse_mla(q, kv, at::tensor(keys, at::kInt).unsqueeze(0), 8, 0.5); };
  attend({}), attend({-1}), attend({0, 9, -1, -1});
  for (const auto& keys : {std::vector<int>{4, 1}, {4, 4}, {-1, 3}, {3, -1, 5}, {10}, {-2}})
    EXPECT_THROW(attend(keys), InputError);
}

TEST_P(AttentionOps, SparseOverAllKeysEqualsDense) {
  at::manual_seed(4);
  int64_t N = 50, H = 3, R = 16, P = 6, nope = 10, V = 9;
  auto c = at::randn({N, R}), k_rope = at::randn({N, P}), q_nope = at::randn({N, H, nope}), q_rope = at::randn({N, H, P});
  auto uk = at::randn({H, nope, R}), uv = at::randn({H, V, R});
  auto visible = documents({50});
  auto k = at::cat({at::einsum("sr,her->she", {c, uk}), k_rope.unsqueeze(1).expand({N, H, P})}, 2);
  auto dense = std::get<0>(dense_mla(at::cat({q_nope, q_rope}, 2), k, at::einsum("sr,hvr->shv", {c, uv}), visible, 0.1));
  auto q = at::cat({at::einsum("nhe,her->nhr", {q_nope, uk}), q_rope}, 2);
  auto selected = at::arange(N, at::kInt).expand({N, N}).clone();
  for (int64_t t = 0; t < N; ++t) selected[t].slice(0, t + 1).fill_(-1);
  auto latent = std::get<0>(sparse_mla(q, at::cat({c, k_rope}, 1), selected, R, 0.1));
  EXPECT_LT(relative(at::einsum("nhr,hvr->nhv", {latent, uv}), dense), 1e-5);
}

struct IndexerCase {
  at::Tensor visible = documents({3, 100, 41});
  at::Tensor q = leaf({144, 5, 18}), k = leaf({144, 18}), w = leaf({144, 5});
};

TEST_P(AttentionOps, IndexerScoresEqualTheReferenceAndNeverDependOnTheBatch) {
  at::manual_seed(5);
  IndexerCase c;
  auto all = indexer_scores(c.q, c.k, c.w, c.visible);
  auto expected = reference::indexer_scores(c.q, c.k, c.w, c.visible);
  EXPECT_TRUE(at::equal(all == -INFINITY, expected == -INFINITY));
  EXPECT_LT(relative(all.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0)), 3e-6);
  auto selected = indexer_top_k(c.q, c.k, c.w, c.visible, 20);
  for (int64_t t : {0, 2, 60, 143}) {
    auto part = [&](const at::Tensor& x) { return x.narrow(0, t, 1); };
    EXPECT_TRUE(at::equal(indexer_scores(part(c.q), c.k, part(c.w), part(c.visible)), part(all)));
    EXPECT_TRUE(at::equal(indexer_top_k(part(c.q), c.k, part(c.w), part(c.visible), 20), part(selected)));
  }
}

TEST_P(AttentionOps, SelectionIsThatOfAFullSort) {
  at::manual_seed(6);
  IndexerCase c;
  auto scores = indexer_scores(c.q, c.k, c.w, c.visible), selected = indexer_top_k(c.q, c.k, c.w, c.visible, 20);
  for (int64_t t = 0; t < 144; ++t) {
    int begin = c.visible[t][0].item<int>(), end = c.visible[t][1].item<int>();
    auto row = scores[t].narrow(0, begin, end - begin).unsqueeze(0);
    auto best = reference::top_k(row, at::full({1}, end - begin, at::kInt), 20);
    EXPECT_TRUE(at::equal(at::where(best >= 0, best + begin, best), selected.narrow(0, t, 1))) << t;
  }
}

TEST_P(AttentionOps, TopKOfLongRowsIsThatOfAFullSort) {
  at::manual_seed(9);
  int64_t S = 20003;
  auto rising = at::arange(S, at::kFloat), some_nan = at::randn({S});
  some_nan.masked_fill_(at::rand({S}) < 0.3, NAN);
  auto rows =
      at::stack({at::randn({S}), rising, -rising, at::randint(-2, 3, {S}).to(at::kFloat), some_nan, at::full({S}, -INFINITY)});
  auto lengths = at::tensor({20003, 20003, 20001, 20000, 20003, 19999}, at::kInt);
  for (int64_t k : {1, 300, 5000, 19998, 20003})
    EXPECT_TRUE(at::equal(top_k(rows, lengths, k), reference::top_k(rows, lengths, k))) << k;
}

TEST(TopK, TiesGoToTheSmallerIndexAndZerosAreEqual) {
  auto scores = at::tensor({0.0f, -0.0f, 1.0f, 0.0f, NAN, -1.0f}).unsqueeze(0);
  auto pick = [&](int64_t k) { return top_k(scores, at::full({1}, 6, at::kInt), k); };
  EXPECT_TRUE(at::equal(pick(2), at::tensor({0, 2}, at::kInt).unsqueeze(0)));
  EXPECT_TRUE(at::equal(pick(3), at::tensor({0, 1, 2}, at::kInt).unsqueeze(0)));
  EXPECT_TRUE(at::equal(pick(5), at::tensor({0, 1, 2, 3, 5}, at::kInt).unsqueeze(0)));
  EXPECT_TRUE(at::equal(pick(8), at::tensor({0, 1, 2, 3, 4, 5, -1, -1}, at::kInt).unsqueeze(0)));
}

// As in the reference: what sees the bad key becomes NaN, all else is as it was.
TEST_P(AttentionOps, NanAndInfinityReachTheRowsThatSeeThemAndNoOthers) {
  at::manual_seed(11);
  IndexerCase c;
  auto nan_in = [](const at::Tensor& x) { return at::isnan(x); };
  for (float bad : {NAN, INFINITY}) {
    auto k = c.k.detach().clone();
    k[7].fill_(bad);
    auto scores = indexer_scores(c.q, k, c.w, c.visible), expected = reference::indexer_scores(c.q, k, c.w, c.visible);
    EXPECT_TRUE(at::equal(nan_in(scores), nan_in(expected))) << bad;
    EXPECT_TRUE(at::equal(scores == INFINITY, expected == INFINITY)) << bad;
    auto kv = at::randn({144, 20}), q = at::randn({144, 3, 20});
    kv[7].fill_(bad);
    auto selected = indexer_top_k(c.q, c.k, c.w, c.visible, 20);
    auto out = std::get<0>(sparse_mla(q, kv, selected, 16, 0.3));
    auto by_hand = std::get<0>(reference::sparse_mla(q, kv, selected, 16, 0.3));
    EXPECT_TRUE(at::equal(nan_in(out), nan_in(by_hand))) << bad;
    EXPECT_TRUE(nan_in(out).any().item<bool>() && !nan_in(out).all().item<bool>()) << bad;
  }
}

TEST_P(AttentionOps, DenseKlEqualsTheReference) {
  at::manual_seed(7);
  IndexerCase c;
  auto aq = at::randn({144, 3, 12}), ak = at::randn({144, 3, 12});
  auto lse = std::get<1>(dense_mla(aq, ak, ak, c.visible, 0.5));
  auto op = [&](const List& in) { return indexer_kl_dense(in[0], in[1], in[2], aq, ak, lse, c.visible, 0.5); };
  auto expected = [&](const List& in) { return reference::indexer_kl_dense(in[0], in[1], in[2], aq, ak, lse, c.visible, 0.5); };
  EXPECT_LT(worst_difference(op, expected, {c.q, c.k, c.w}), 1e-5);
}

// A document of several blocks and tiles of keys; sums of rows take the gradients made in the forward pass.
TEST_P(AttentionOps, KlOfLongDocumentsAndSumsOfRowsHaveTheReferencesGradients) {
  at::manual_seed(10);
  auto visible = documents({601, 9});
  auto q = leaf({610, 3, 10}), k = leaf({610, 10}), w = leaf({610, 3});
  auto aq = at::randn({610, 2, 7}), ak = at::randn({610, 2, 7});
  auto lse = std::get<1>(dense_mla(aq, ak, ak, visible, 0.5));
  auto selected = indexer_top_k(q, k, w, visible, 40);
  auto target = at::rand({610, 40}) * (selected >= 0);
  target = target / target.sum(1, true);
  auto dense = [&](const List& in) { return indexer_kl_dense(in[0], in[1], in[2], aq, ak, lse, visible, 0.5); };
  auto sparse = [&](const List& in) { return indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
  auto dense_expected = [&](const List& in) {
    return reference::indexer_kl_dense(in[0], in[1], in[2], aq, ak, lse, visible, 0.5);
  };
  auto sparse_expected = [&](const List& in) { return reference::indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
  auto sum_of = [](const Op& op) { return Op([op](const List& in) { return op(in).sum() * 0.3; }); };
  EXPECT_LT(worst_difference(dense, dense_expected, {q, k, w}), 1e-5);
  EXPECT_LT(worst_difference(sum_of(dense), sum_of(dense_expected), {q, k, w}), 1e-5);
  EXPECT_LT(worst_difference(sum_of(sparse), sum_of(sparse_expected), {q, k, w}), 1e-5);
}

TEST_P(AttentionOps, SparseKlEqualsTheReferenceAndWithAllKeysTheDenseOne) {
  at::manual_seed(8);
  IndexerCase c;
  auto selected = indexer_top_k(c.q, c.k, c.w, c.visible, 9);
  auto target = at::rand({144, 9}) * (selected >= 0);
  target = target / target.sum(1, true);
  auto op = [&](const List& in) { return indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
  auto expected = [&](const List& in) { return reference::indexer_kl_sparse(in[0], in[1], in[2], selected, target); };
  EXPECT_LT(worst_difference(op, expected, {c.q, c.k, c.w}), 1e-5);

  auto aq = at::randn({144, 3, 12}), ak = at::randn({144, 3, 12});
  auto lse = std::get<1>(dense_mla(aq, ak, ak, c.visible, 0.5));
  auto all = indexer_top_k(c.q, c.k, c.w, c.visible, 100);
  auto scores = at::einsum("nhe,she->nhs", {aq, ak}) * 0.5;
  auto mask = at::isfinite(reference::indexer_scores(c.q, c.k, c.w, c.visible));
  auto p =
      ((scores - lse.unsqueeze(-1)).exp() * mask.unsqueeze(1)).mean(1).gather(1, all.clamp_min(0).to(at::kLong)) * (all >= 0);
  EXPECT_LT(relative(indexer_kl_sparse(c.q, c.k, c.w, all, p), indexer_kl_dense(c.q, c.k, c.w, aq, ak, lse, c.visible, 0.5)),
            1e-5);
}

// Keys of groups as one key of all groups' numbers, and heads that are 0 but for their own.
at::Tensor spread(const at::Tensor& q, int64_t groups) {
  auto wide = at::zeros({q.size(0), q.size(1), groups, q.size(2)});
  for (int64_t j = 0; j < q.size(1); ++j) wide.select(1, j).select(1, j * groups / q.size(1)).copy_(q.select(1, j));
  return wide.flatten(2);
}

TEST_P(AttentionOps, GroupsOfKeysScoreAndLearnAsTheReferenceDoes) {
  at::manual_seed(12);
  auto visible = documents({3, 400, 41});
  for (int64_t groups : {2, 3}) {
    auto q = leaf({444, 6, 10}), w = leaf({444, 6});
    auto k = at::randn({444, groups, 10});
    auto scores = indexer_scores(q, k, w, visible);
    EXPECT_LT(relative(scores.nan_to_num(0, 0, 0), reference::indexer_scores(q, k, w, visible).nan_to_num(0, 0, 0)), 3e-6);
    EXPECT_LT(relative(scores.nan_to_num(0, 0, 0),
                       indexer_scores(spread(q.detach(), groups), k.flatten(1), w, visible).nan_to_num(0, 0, 0)),
              3e-6);
    auto selected = indexer_top_k(q, k, w, visible, 30);
    for (int64_t t : {2, 300, 443}) {
      auto part = [&](const at::Tensor& x) { return x.narrow(0, t, 1); };
      EXPECT_TRUE(at::equal(indexer_scores(part(q), k, part(w), part(visible)), part(scores)));
      EXPECT_TRUE(at::equal(indexer_top_k(part(q), k, part(w), part(visible), 30), part(selected)));
    }
    auto aq = at::randn({444, 4, 12}), ak = at::randn({444, 2, 12});
    auto lse = std::get<1>(dense_mla(aq, ak, ak, visible, 0.5));
    auto dense = [&](const List& in) { return indexer_kl_dense(in[0], k, in[1], aq, ak, lse, visible, 0.5); };
    auto dense_expected = [&](const List& in) { return reference::indexer_kl_dense(in[0], k, in[1], aq, ak, lse, visible, 0.5); };
    EXPECT_LT(worst_difference(dense, dense_expected, {q, w}), 1e-5);
    auto target = at::rand({444, 30}) * (selected >= 0);
    target = target / target.sum(1, true);
    auto sparse = [&](const List& in) { return indexer_kl_sparse(in[0], k, in[1], selected, target); };
    auto sparse_expected = [&](const List& in) { return reference::indexer_kl_sparse(in[0], k, in[1], selected, target); };
    EXPECT_LT(worst_difference(sparse, sparse_expected, {q, w}), 1e-5);
    EXPECT_THROW(indexer_kl_sparse(q, k.clone().requires_grad_(), w, selected, target), InputError);
  }
  EXPECT_THROW(indexer_scores(at::randn({3, 4, 5}), at::randn({3, 3, 5}), at::randn({3, 4}), documents({3})), InputError);
}

// A key's values before it: as a key of zeros and its numbers under a query of zeros and its own.
TEST_P(AttentionOps, ValuesThatLieBeforeTheirKeysAreWeighedAlike) {
  at::manual_seed(13);
  auto visible = documents({3, 100, 41});
  auto q = leaf({144, 3, 12}), kv = leaf({144, 21});
  auto selected = indexer_top_k(at::randn({144, 2, 8}), at::randn({144, 8}), at::randn({144, 2}), visible, 20);
  auto op = [&](const List& in) { return std::get<0>(sparse_mla(in[0], in[1], selected, 9, 0.3)); };
  auto expected = [&](const List& in) {
    auto wide = at::cat({at::zeros({144, 3, 9}), in[0]}, 2);
    return std::get<0>(reference::sparse_mla(wide, in[1], selected, 9, 0.3));
  };
  EXPECT_LT(worst_difference(op, expected, {q, kv}), 1e-5);
  auto of_groups = leaf({144, 2, 21}), all = leaf({144, 6, 12});
  auto grouped = [&](const List& in) { return std::get<0>(sparse_mla(in[0], in[1], selected, 9, 0.3)); };
  auto apart = [&](const List& in) {
    auto part = [&](int64_t g) { return expected({in[0].narrow(1, 3 * g, 3), in[1].select(1, g)}); };
    return at::cat({part(0), part(1)}, 1);
  };
  EXPECT_LT(worst_difference(grouped, apart, {all, of_groups}), 1e-5);
  auto target_of = [&](const at::Tensor& queries, const at::Tensor& keys) {
    return std::get<2>(sparse_mla(queries, keys, selected, 9, 0.3));
  };
  auto mean =
      (target_of(all.narrow(1, 0, 3), of_groups.select(1, 0)) + target_of(all.narrow(1, 3, 3), of_groups.select(1, 1))) / 2;
  EXPECT_LT(relative(target_of(all, of_groups), mean), 1e-6);
  auto few = sparse_mla(q.narrow(0, 100, 1), kv, selected.narrow(0, 100, 1), 9, 0.3);
  EXPECT_TRUE(at::equal(std::get<0>(few), op({q, kv}).narrow(0, 100, 1)));
}

TEST(DenseMla, SharedKeysTakeTheGradientsOfAllTheirHeads) {
  at::manual_seed(14);
  auto visible = documents({3, 70, 41});
  auto q = leaf({114, 6, 12}), k = leaf({114, 2, 12}), v = leaf({114, 2, 10});
  auto shared = [&](const List& in) { return std::get<0>(dense_mla(in[0], in[1], in[2], visible, 0.3)); };
  auto apart = [&](const List& in) {
    return std::get<0>(reference::dense_mla(in[0], in[1].repeat_interleave(3, 1), in[2].repeat_interleave(3, 1), visible, 0.3));
  };
  EXPECT_LT(worst_difference(shared, apart, {q, k, v}), 1e-5);
  c10::AutoGradMode no_grad(false);
  auto without = shared({q, k, v});
  c10::AutoGradMode grad(true);
  EXPECT_TRUE(at::equal(shared({q, k, v}), without));
}

}  // namespace
}  // namespace fulgur::ops
