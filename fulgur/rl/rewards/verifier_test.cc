#include "fulgur/rl/rewards/verifier.h"

#include <gmock/gmock.h>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

double score(const std::string& verify, const Json& expected, const std::string& answer) {
  Verifier verifier({}, 5);
  auto outcome = verifier({{"verify", verify}, {"answer", expected}}, {{Role::user, "?"}, {Role::assistant, answer}});
  return outcome.value().score.value();
}

TEST(Verifier, VerifiesWhatALineAsksFor) {
  EXPECT_EQ(score("number", 4, "2 and 2 are 4."), 1);
  EXPECT_EQ(score("number", 4, "2 and 2 are 5."), 0);
  EXPECT_EQ(score("number", 0.5, "\\boxed{1/2}"), 1);
  EXPECT_EQ(score("regex", "^[a-z]+$", "word"), 1);
  EXPECT_EQ(score("regex", "^[a-z]+$", "two words"), 0);
  EXPECT_EQ(score("schema", {{"required", {"a"}}}, "{\"a\": 1}"), 1);
  EXPECT_EQ(score("schema", {{"required", {"a"}}}, "{}"), 0);
}

TEST(Verifier, LeavesTheOthersToTheirFamily) {
  Verifier verifier({}, 5);
  EXPECT_EQ(verifier(Json(), {{Role::assistant, "4"}}), std::nullopt);
  EXPECT_EQ(verifier(Json{{"pairs", 3}}, {{Role::assistant, "4"}}), std::nullopt);
}

TEST(Verifier, ARubricNeedsAJudgeThatAnswers) {
  Json data{{"verify", "rubric"}, {"answer", {"rhymes", {{"text", "short"}, {"weight", 2}}}}};
  std::vector<Message> conversation{{Role::user, "A poem"}, {Role::assistant, "Roses"}};
  Verifier none({}, 5);
  EXPECT_THROW(none(data, conversation), InputError);
  // Nobody listens there: invalid, not 0.
  Verifier gone({.base_url = "http://127.0.0.1:9/v1", .model = "judge", .total_seconds = 0.2, .first_wait = 0.01}, 2);
  auto outcome = gone(data, conversation);
  ASSERT_TRUE(outcome);
  EXPECT_FALSE(outcome->score);
  EXPECT_THAT(outcome->why, testing::AnyOf(testing::StartsWith("endpoint: "), testing::StartsWith("time limit: ")));
}

}  // namespace
}  // namespace fulgur
