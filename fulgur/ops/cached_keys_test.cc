#include "fulgur/ops/cached_keys.h"

#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/pages.h"
#include "fulgur/ops/quantize/quantize.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"
#include "fulgur/ops/testing.h"

namespace fulgur::ops {
namespace {

FULGUR_EACH_ISA(CachedKeys);

// Keys of a text in pages out of order, and which keys each of the last rows sees.
struct Pages {
  static constexpr int64_t kKeys = 301;
  at::Tensor pages = at::tensor({6, 0, 3, 1, 5}, at::kInt);
  at::Tensor slots() const {
    auto key = at::arange(kKeys, at::kLong);
    return pages.to(at::kLong).index_select(0, key.div(kPageKeys, "floor")) * kPageKeys + key.remainder(kPageKeys);
  }
  at::Tensor visible(int64_t rows) const {
    auto out = at::zeros({rows, 2}, at::kInt);
    for (int64_t r = 0; r < rows; ++r) out[r][1] = int(kKeys - rows + 1 + r);
    return out;
  }
};

// Whole numbers to +-limit of each vector, and their scales.
std::pair<at::Tensor, at::Tensor> integers(const at::Tensor& x, double limit) {
  auto values = x.to(at::kFloat), most = values.abs().amax(-1, true);
  return {(values * (limit / most)).round(), most / limit};
}

TEST_P(CachedKeys, IndexerKeysOfFp8GiveTheBitsOfTheirValues) {
  at::manual_seed(1);
  Pages at;
  for (int64_t D : {8, 32, 100, 128})
    for (auto type : {at::kFloat, at::kBFloat16}) {
      auto k = at::randn({Pages::kKeys, D}).to(type);
      auto cache = empty_index_keys(7, D, KeyFormat::fp8, type);
      cache.fill_(0x55);
      store_index_keys(cache, at.slots(), k);
      auto [bytes, scales] = quantize_rows(k, ScaleRule::pow2);
      auto held = dequantize_rows(bytes, scales).to(type);
      for (int64_t rows : {1, 5, 20}) {
        auto q = at::randn({rows, 7, D}).to(type), w = at::randn({rows, 7}), visible = at.visible(rows);
        EXPECT_TRUE(at::equal(indexer_scores(q, cache, w, visible, at.pages).narrow(1, 0, Pages::kKeys),
                              indexer_scores(q, held, w, visible)));
        EXPECT_TRUE(at::equal(indexer_top_k(q, cache, w, visible, 40, at.pages), indexer_top_k(q, held, w, visible, 40)));
      }
    }
}

TEST_P(CachedKeys, IndexerKeysOfInt8AreScoredExactly) {
  at::manual_seed(2);
  Pages at;
  for (auto [J, D] : {std::pair<int64_t, int64_t>{7, 8}, {7, 32}, {7, 100}, {7, 128}, {4, 64}, {16, 128}, {32, 128}})
    for (auto type : {at::kFloat, at::kBFloat16}) {
      auto k = at::randn({Pages::kKeys, D}).to(type);
      auto cache = empty_index_keys(7, D, KeyFormat::int8, type);
      cache.fill_(0x55);
      store_index_keys(cache, at.slots(), k);
      auto [k8, k_scale] = integers(k, 127);
      for (int64_t rows : {1, 5, 20}) {
        auto q = at::randn({rows, J, D}).to(type), w = at::randn({rows, J}), visible = at.visible(rows);
        auto [q8, q_scale] = integers(q, 63);
        auto scores = indexer_scores(q, cache, w, visible, at.pages).narrow(1, 0, Pages::kKeys);
        auto expected = reference::indexer_scores(q8, k8, w * q_scale.squeeze(2), visible) * k_scale.squeeze(1);
        auto seen = expected.isfinite();
        EXPECT_LT(relative(scores.masked_select(seen), expected.masked_select(seen)), 2e-6) << J << " " << D;
        EXPECT_TRUE(at::equal(scores.isfinite(), seen));
        for (int64_t row = 0; row < rows; ++row)
          EXPECT_TRUE(
              at::equal(indexer_scores(q.narrow(0, row, 1), cache, w.narrow(0, row, 1), visible.narrow(0, row, 1), at.pages)
                            .narrow(1, 0, Pages::kKeys),
                        scores.narrow(0, row, 1)));
        EXPECT_TRUE(
            at::equal(indexer_top_k(q, cache, w, visible, 40, at.pages), top_k(scores, visible.select(1, 1).contiguous(), 40)));
      }
    }
}

TEST_P(CachedKeys, LatentsOfFp8GiveTheBitsOfTheirValues) {
  at::manual_seed(3);
  Pages at;
  for (auto [R, P] : {std::pair<int64_t, int64_t>{512, 64}, {64, 16}, {200, 8}, {130, 6}})
    for (auto type : {at::kFloat, at::kBFloat16})
      for (int64_t H : {3, 16}) {
        auto c = at::randn({Pages::kKeys, R}).to(type), rope = at::randn({Pages::kKeys, P}).to(type);
        auto cache = empty_latents(7, R, P, KeyFormat::fp8, type);
        store_latents(cache, at.slots(), c, rope);
        auto held = unpack_latents(pack_latents(c, rope), R, P).to(type);
        for (int64_t rows : {1, 20}) {
          auto selected = top_k(at::randn({rows, Pages::kKeys}), at.visible(rows).select(1, 1).contiguous(), 270);
          auto q = at::randn({rows, H, R + P}).to(type);
          auto got = sparse_mla(q, cache, selected, R, 0.1, at.pages), expected = sparse_mla(q, held, selected, R, 0.1);
          EXPECT_TRUE(at::equal(std::get<0>(got), std::get<0>(expected))) << R << " " << P << " " << H << " " << rows;
          EXPECT_TRUE(at::equal(std::get<1>(got), std::get<1>(expected)));
          EXPECT_TRUE(at::equal(std::get<2>(got), std::get<2>(expected)));
        }
      }
}

TEST(CachedKeysOfPages, AreCopiedWithTheirScales) {
  at::manual_seed(4);
  auto k = at::randn({64, 32}), w = at::ones({1, 2}), q = at::randn({1, 2, 32});
  auto visible = at::tensor({0, 50}, at::kInt).view({1, 2}), slots = at::arange(64, at::kLong);
  for (auto format : {KeyFormat::plain, KeyFormat::fp8, KeyFormat::int8}) {
    auto index = empty_index_keys(3, 32, format, at::kFloat);
    store_index_keys(index, slots, k);
    copy_index_keys(index, 0, 2, 50);
    EXPECT_TRUE(at::equal(indexer_scores(q, index, w, visible, at::tensor({0}, at::kInt)),
                          indexer_scores(q, index, w, visible, at::tensor({2}, at::kInt))));
  }
}

TEST(CachedKeysOfPages, NameWhatDoesNotFit) {
  EXPECT_EQ(empty_latents(1, 512, 64, KeyFormat::fp8, at::kFloat).sizes(), (std::vector<int64_t>{64, 656}));
  EXPECT_EQ(empty_index_keys(1, 128, KeyFormat::fp8, at::kFloat).sizes(), (std::vector<int64_t>{1, 64 * 132}));
  EXPECT_THROW(empty_latents(1, 512, 64, KeyFormat::int8, at::kFloat), InputError);
  EXPECT_THROW(empty_index_keys(1, 256, KeyFormat::int8, at::kFloat), InputError);
  auto q = at::zeros({1, 1, 8}), w = at::zeros({1, 1}), visible = at::tensor({0, 1}, at::kInt).view({1, 2});
  auto bytes = at::zeros({1, 64 * 12}, at::kByte), pages = at::tensor({0}, at::kInt);
  EXPECT_THROW(indexer_scores(q, bytes, w, visible), InputError);
  EXPECT_THROW(indexer_scores(q, at::zeros({1, 64 * 8}, at::kByte), w, visible, pages), InputError);
  EXPECT_THROW(sparse_mla(q, bytes, at::zeros({1, 1}, at::kInt), 8, 1), InputError);
  EXPECT_THROW(unpack_latents(bytes, 8, 4), InputError);
}

}  // namespace
}  // namespace fulgur::ops
