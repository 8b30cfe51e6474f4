// Families of one question and one answer, and the episodes that end with an answer.
#pragma once

#include <string>
#include <string_view>

#include "fulgur/tasks/task.h"

namespace fulgur {

// Without white space around it.
std::string trimmed(std::string_view text);

// Ends at the first answer, which is right or wrong.
class AnswerEpisode : public Episode {
 public:
  explicit AnswerEpisode(std::string expected) : expected_(std::move(expected)) {}
  std::optional<std::string> answer(const Message& message) final;
  double score() const final { return right_ ? 1 : 0; }

 protected:
  virtual bool is_right(const std::string& answer) const { return answer == expected_; }

 private:
  std::string expected_;
  bool right_ = false;
};

struct Question {
  std::string key, prompt, answer;
  std::string thought;  // what leads to the answer, in a line
  std::string hasty;    // what one answers who gives up early
  Json given = {};      // what else a verifier needs
};

class QuestionFamily : public Family {
 public:
  std::unique_ptr<Episode> begin(const Task& task) const override;
  Message solve(const Task& task, const std::vector<Message>& conversation, Strategy strategy) const final;

 protected:
  virtual Question ask(int64_t difficulty, RandomStream& random) const = 0;
  Task draw(int64_t difficulty, bool fresh, RandomStream& random) const final;
};

}  // namespace fulgur
