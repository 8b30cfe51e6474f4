#include "fulgur/tasks/question.h"

namespace fulgur {

std::string trimmed(std::string_view text) {
  constexpr const char* kSpace = " \t\r\n";
  auto begin = text.find_first_not_of(kSpace);
  if (begin == text.npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(kSpace) + 1 - begin));
}

std::optional<std::string> AnswerEpisode::answer(const Message& message) {
  right_ = is_right(trimmed(message.content));
  return {};
}

std::unique_ptr<Episode> QuestionFamily::begin(const Task& task) const {
  return std::make_unique<AnswerEpisode>(task.data.at("answer").get<std::string>());
}

Message QuestionFamily::solve(const Task& task, const std::vector<Message>&, Strategy strategy) const {
  Message out{Role::assistant};
  if (strategy == Strategy::right) out.reasoning_content = task.data.at("thought");
  out.content = task.data.at(strategy == Strategy::right ? "answer" : "hasty");
  return out;
}

Task QuestionFamily::draw(int64_t difficulty, bool, RandomStream& random) const {
  auto question = ask(difficulty, random);
  Task task;
  task.key = question.key;
  task.messages = {{Role::user, question.prompt}};
  task.data = {{"answer", question.answer}, {"thought", question.thought}, {"hasty", question.hasty}, {"given", question.given}};
  return task;
}

}  // namespace fulgur
