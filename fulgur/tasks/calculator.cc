// What is (37*24)+15?  ->  calculator("37*24"), calculator("888+15"), 903
// The tool does one operation a call, so an expression of `difficulty` operations takes as many.
#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/numbers.h"
#include "fulgur/tasks/question.h"
#include "fulgur/tasks/tool.h"

namespace fulgur {
namespace {

const Tool kCalculator{"calculator", "One operation, as 12*34.", "expression"};

class CalculatorEpisode : public AnswerEpisode {
 public:
  using AnswerEpisode::AnswerEpisode;
  std::string call(const ToolCall& call) override {
    if (call.name != kCalculator.name) return Episode::call(call);
    auto argument = kCalculator.argument_of(call);
    if (!argument) return kCalculator.complaint();
    auto operation = operation_of(*argument);
    return operation ? std::to_string(operation->value()) : "error: expected one operation, as 12*34";
  }
};

Json json_of(const Operation& step) { return Json::array({std::string(1, step.sign), step.right}); }

// An operation whose left operand is the value so far.
Operation step_of(const Task& task, size_t index, int64_t value) {
  const auto& step = task.data.at("steps").at(index);
  return {value, step.at(0).get<std::string>()[0], step.at(1).get<int64_t>()};
}

class Calculator : public Family {
 public:
  std::string name() const override { return "calculator"; }
  std::string summary() const override { return "an expression by a tool that does one operation a call"; }
  int64_t hardest() const override { return 3; }
  std::unique_ptr<Episode> begin(const Task& task) const override {
    return std::make_unique<CalculatorEpisode>(task.data.at("answer").get<std::string>());
  }

  Message solve(const Task& task, const std::vector<Message>& conversation, Strategy strategy) const override {
    auto steps = strategy == Strategy::right ? task.data.at("steps").size() : 1;
    auto done = std::min(size_t(results_in(conversation)), steps);
    int64_t value = task.data.at("first");
    for (size_t i = 0; i < done; ++i) value = step_of(task, i, value).value();
    if (done == steps) return {Role::assistant, std::to_string(value), cat("It is ", value, ".")};
    auto next = step_of(task, done, value);
    return kCalculator.call(cat(next.left, next.sign, next.right), cat(done ? "Then " : "First ", next.text(), "."));
  }

 protected:
  Task draw(int64_t difficulty, bool, RandomStream& random) const override {
    auto first = draw_operation(2 + int64_t(random.below(2)), random);
    auto value = first.value();
    auto text = cat(first.left, first.sign, first.right), key = first.key();
    Task task;
    task.data = {{"first", first.left}, {"steps", Json::array({json_of(first)})}};
    for (int64_t i = 1; i < difficulty; ++i) {
      Operation step{value, pick(kSigns, random), between(random, 10, 99)};
      task.data["steps"].push_back(json_of(step));
      auto rest = cat(step.sign, step.right);
      text = cat("(", text, ")", rest), key += rest, value = step.value();
    }
    task.key = key;
    task.messages = kCalculator.offer("What is " + text + "?");
    task.data["answer"] = std::to_string(value);
    return task;
  }
};

FULGUR_FAMILY(Calculator);

}  // namespace
}  // namespace fulgur
