#include "fulgur/rl/rewards/verifier.h"

#include "fulgur/base/error.h"
#include "fulgur/rl/rewards/guard.h"
#include "fulgur/rl/rewards/regex_match.h"
#include "fulgur/rl/rewards/schema_match.h"

namespace fulgur {
namespace {

std::vector<RubricItem> rubric_of(const Json& list) {
  std::vector<RubricItem> out;
  for (const auto& item : list)
    out.push_back(item.is_string() ? RubricItem{item.get<std::string>()}
                                   : RubricItem{item.at("text").get<std::string>(), item.value("weight", 1.0)});
  return out;
}

}  // namespace

Verifier::Verifier(const EndpointOptions& judge, double seconds) : seconds_(seconds) {
  if (!judge.base_url.empty()) judge_.emplace(judge);
}

std::optional<Outcome> Verifier::operator()(const Json& data, const std::vector<Message>& conversation) const {
  auto verify = data.is_object() ? data.value("verify", std::string()) : "";
  if (verify.empty() || verify == "exact") return {};
  const Json& expected = data.at("answer");
  auto answer = conversation.back().content;
  if (verify == "number") return numeric_match(answer, expected.get<double>(), 1e-6);
  if (verify == "regex")
    return run_reward([match = RegexMatch(expected.get<std::string>()), answer] { return match(answer); }, seconds_);
  if (verify == "schema") return run_reward([match = SchemaMatch(expected), answer] { return match(answer); }, seconds_);
  FULGUR_CHECK(judge_, "[rl] judge_url: expected an endpoint, for tasks with a rubric, got none");
  std::vector<Message> before(conversation.begin(), conversation.end() - 1);
  return run_reward([judge = *judge_, rubric = rubric_of(expected), before, answer] { return judge(rubric, before, answer); },
                    seconds_);
}

}  // namespace fulgur
