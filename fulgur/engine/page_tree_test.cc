#include "fulgur/engine/page_tree.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

namespace fulgur {
namespace {

using Tokens = std::vector<int32_t>;

Tokens text(int64_t length, int32_t first = 0) {
  Tokens tokens(length);
  for (int64_t i = 0; i < length; ++i) tokens[i] = first + int32_t(i);
  return tokens;
}

// A sequence of these tokens, all of them computed.
PageTree::Held store(PageTree& tree, const Tokens& tokens) {
  PageTree::Held held;
  auto match = tree.match(tokens, held);
  EXPECT_TRUE(tree.grow(held, int64_t(tokens.size())));
  EXPECT_LT(match.tokens, int64_t(tokens.size()));
  tree.publish(tokens, int64_t(tokens.size()), held);
  return held;
}

TEST(PageTree, SharesFullPagesAndCopiesWhatIsBegun) {
  PageTree tree(10);
  auto first = store(tree, text(200));  // three full pages and one of 8 tokens
  PageTree::Held second;
  auto match = tree.match(text(200), second);
  EXPECT_EQ(match.tokens, 192);
  EXPECT_FALSE(match.copy);  // the last page is still its owner's
  EXPECT_EQ(second.pages, Tokens(first.pages.begin(), first.pages.begin() + 3));
  tree.check({&first, &second});
  int32_t tail = first.pages[3];
  tree.release(text(200), 200, first);
  tree.release(text(200), 192, second);
  PageTree::Held third;
  match = tree.match(text(198), third);
  EXPECT_EQ(match.tokens, 197);
  ASSERT_TRUE(match.copy);
  EXPECT_EQ(match.copy->from, tail);
  EXPECT_EQ(match.copy->count, 5);
  EXPECT_EQ(third.pages.back(), match.copy->to);
  tree.check({&third});
}

TEST(PageTree, LeavesAtLeastOneTokenToCompute) {
  PageTree tree(10);
  auto first = store(tree, text(128));
  tree.release(text(128), 128, first);
  PageTree::Held held;
  auto match = tree.match(text(128), held);
  EXPECT_EQ(match.tokens, 127);
  EXPECT_EQ(match.copy->count, 63);
  tree.release(text(128), 127, held);
  EXPECT_EQ(tree.match(text(1), held).tokens, 0);
  EXPECT_EQ(tree.match({}, held).tokens, 0);
}

TEST(PageTree, TwoWhoComputedTheSameTextEndUpWithOneCopy) {
  PageTree tree(10);
  PageTree::Held a, b;
  ASSERT_TRUE(tree.grow(a, 130) && tree.grow(b, 130));
  tree.publish(text(130), 130, a);
  tree.publish(text(130), 130, b);
  EXPECT_EQ(a.pages[0], b.pages[0]);
  EXPECT_EQ(a.pages[1], b.pages[1]);
  EXPECT_NE(a.pages[2], b.pages[2]);
  EXPECT_EQ(tree.count().free, 6);
  tree.check({&a, &b});
}

TEST(PageTree, EvictsTheLeastRecentlyUsedLeafAndNeverWhatIsHeld) {
  PageTree tree(4);
  auto old = store(tree, text(64)), young = store(tree, text(64, 1000));
  tree.release(text(64), 64, old);
  auto longer = store(tree, text(128, 2000));
  tree.release(text(64, 1000), 64, young);
  EXPECT_EQ(tree.available(), 2);
  PageTree::Held held;
  EXPECT_FALSE(tree.grow(held, 129));  // three pages: one is held by `longer`, with its two
  EXPECT_TRUE(held.pages.empty());
  ASSERT_TRUE(tree.grow(held, 64));
  EXPECT_EQ(tree.count().evictions, 1);
  PageTree::Held probe;
  EXPECT_EQ(tree.match(text(65), probe).tokens, 0);         // the oldest is gone,
  EXPECT_EQ(tree.match(text(65, 1000), probe).tokens, 64);  // the younger is not
  tree.check({&longer, &held, &probe});
}

// Any order of reading, growing, giving up: no page is lost or held twice, and what is found is what was stored.
RC_GTEST_PROP(PageTree, KeepsItsAccountsWhateverHappens, ()) {
  const auto pages = *rc::gen::inRange(1, 24);
  PageTree tree(pages);
  std::vector<int32_t> row(int64_t(pages) * kPageKeys, -1);  // the token each row of the cache belongs to
  struct Open {
    Tokens tokens;
    PageTree::Held held;
    int64_t computed = 0;
  };
  std::vector<std::unique_ptr<Open>> open;
  const auto steps = *rc::gen::inRange(1, 120);
  for (int step = 0; step < steps; ++step) {
    const auto what = *rc::gen::inRange(0, 3);
    if (what == 0 || open.empty()) {
      auto next = std::make_unique<Open>();
      const auto length = *rc::gen::inRange(1, 300), family = *rc::gen::inRange(0, 3), fork = *rc::gen::inRange(0, 300);
      next->tokens = text(length, family * 1000);
      for (int i = fork; i < length; ++i) next->tokens[i] += 500;  // texts of a family part somewhere
      auto match = tree.match(next->tokens, next->held);
      if (match.copy)
        for (int64_t i = 0; i < match.copy->count; ++i)
          row[match.copy->to * kPageKeys + i] = row[match.copy->from * kPageKeys + i];
      next->computed = match.tokens;
      open.push_back(std::move(next));
    } else {
      auto at = open.begin() + *rc::gen::inRange<int>(0, int(open.size()));
      Open& one = **at;
      if (what == 1 && tree.grow(one.held, int64_t(one.tokens.size()))) {
        for (; one.computed < int64_t(one.tokens.size()); ++one.computed)
          row[row_of_key(one.held.pages.data(), one.computed)] = one.tokens[one.computed];
        tree.publish(one.tokens, one.computed, one.held);
      } else {
        tree.release(one.tokens, one.computed, one.held);
        open.erase(at);
      }
    }
    std::vector<const PageTree::Held*> all;
    for (const auto& one : open) {
      all.push_back(&one->held);
      for (int64_t i = 0; i < one->computed; ++i) RC_ASSERT(row[row_of_key(one->held.pages.data(), i)] == one->tokens[i]);
    }
    tree.check(all);
  }
}

}  // namespace
}  // namespace fulgur
