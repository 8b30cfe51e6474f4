#include "fulgur/train/conversations.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

namespace fulgur {
namespace {

// Text whose tokens are its sequences' numbers plus 1000.
class Numbers : public BatchSource {
 public:
  TrainBatch get(int64_t first, int64_t count) override {
    auto tokens = at::arange(1000 + first, 1000 + first + count).repeat_interleave(8).to(at::kInt);
    return {pack_documents(tokens, std::vector<int64_t>(count, 8)), tokens, tokens, (at::arange(count + 1) * 8).to(at::kInt)};
  }
  int64_t sequences_per_epoch() const override { return 100; }
};

// Twenty samples of five tokens, all the sample's number, of which three are learned: one to a sequence of eight.
std::vector<Sample> samples() {
  std::vector<Sample> out;
  for (int32_t i = 0; i < 20; ++i) out.push_back({std::vector<int32_t>(5, i), {false, false, true, true, true}, 2});
  return out;
}

// Sequences of eight tokens.
StageConfig settings(double text_share, int64_t step_sequences, bool shuffle = true) {
  StageConfig out;
  out.context = 8, out.batch_tokens = 8 * step_sequences;
  out.text_share = text_share, out.shuffle = shuffle;
  return out;
}

std::vector<int32_t> values(const at::Tensor& x) {
  auto y = x.to(at::kInt).contiguous();
  return {y.const_data_ptr<int32_t>(), y.const_data_ptr<int32_t>() + y.numel()};
}

TEST(Conversations, WholeStepsAreTextAndNothingIsLeftOut) {
  Numbers text;
  Conversations both(samples(), text, settings(0.3, 3));
  std::multiset<int32_t> seen;
  int64_t texts = 0;
  for (int64_t step = 0; step < 20; ++step) {
    std::set<bool> kinds;
    for (int32_t token : values(both.get(3 * step, 3).batch.tokens_N)) {
      kinds.insert(token >= 1000);
      if (token < 1000) {
        seen.insert(token);
      } else {
        EXPECT_EQ(token, 1000 + texts / 8);
        ++texts;
      }
    }
    EXPECT_EQ(kinds.size(), 1u) << "step " << step;
  }
  EXPECT_EQ(texts, 6 * 3 * 8);
  for (int32_t i = 0; i < 20; ++i) EXPECT_GE(seen.count(i), 10u) << "each sample twice in 42 sequences";
}

TEST(Conversations, AnyCutOfASequenceGivesTheSame) {
  Numbers text;
  for (double share : {0.0, 0.25, 0.6}) {
    Conversations whole(samples(), text, settings(share, 4)), apart(samples(), text, settings(share, 4));
    for (int64_t step = 0; step < 12; ++step) {
      std::vector<int32_t> tokens, next;
      for (int64_t i = 0; i < 4; ++i) {
        auto one = apart.get(4 * step + i, 1);
        for (int32_t token : values(one.batch.tokens_N)) tokens.push_back(token);
        for (int32_t token : values(one.next_N)) next.push_back(token);
      }
      auto all = whole.get(4 * step, 4);
      EXPECT_EQ(values(all.batch.tokens_N), tokens);
      EXPECT_EQ(values(all.next_N), next);
    }
  }
}

TEST(Conversations, UnshuffledTheyComeAsInTheFile) {
  Numbers text;
  Conversations as_they_come(samples(), text, settings(0, 1, /*shuffle=*/false));
  for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(values(as_they_come.get(i, 1).batch.tokens_N)[0], i % 20);
}

TEST(Conversations, OnlyAnswersAreTargets) {
  Numbers text;
  Conversations none(samples(), text, settings(0, 1));
  auto batch = none.get(0, 1);
  auto token = values(batch.batch.tokens_N)[0];
  EXPECT_EQ(values(batch.next_N), (std::vector<int32_t>{-1, token, token, token, -1}));
}

}  // namespace
}  // namespace fulgur
