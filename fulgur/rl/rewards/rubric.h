// A generative reward model: another model says how well an answer keeps to the rubric of its prompt.
#pragma once

#include <string>
#include <vector>

#include "fulgur/rl/rewards/endpoint.h"
#include "fulgur/text/message.h"

namespace fulgur {

struct RubricItem {
  std::string text;   // what is asked of an answer
  double weight = 1;  // above 0; the judge does not see it
};

// Asks an endpoint for one score from 0 to 1 for each item. What is judged comes to it as JSON in one message, so that an answer
// cannot pass for the rubric or end its own quotes. The outcome's score is the mean by weight; its detail has "prompt" (the
// messages sent), "answer" (what the judge wrote), "scores" and "attempts". Invalid as in endpoint.h. Thread-safe; copies are
// cheap. Under run_reward let the function own a copy.
class RubricJudge {
 public:
  // Throws InputError as ChatEndpoint does.
  explicit RubricJudge(EndpointOptions options);
  // Throws InputError when the rubric is empty, or a weight not above 0 and finite. Reasoning in the conversation is not shown.
  Outcome operator()(const std::vector<RubricItem>& rubric, const std::vector<Message>& conversation,
                     std::string_view answer) const;

 private:
  ChatEndpoint endpoint_;
};

// The scores in a judge's answer: {"scores": [...]} and nothing else, of `count` numbers from 0 to 1; may stand in a fence of
// three backticks, and behind </think>. Throws InputError that says what is wrong.
std::vector<double> read_scores(std::string_view answer, size_t count);

}  // namespace fulgur
