#include "fulgur/rl/answer_grammars.h"

#include "fulgur/text/schema.h"

namespace fulgur {

AnswerGrammars::AnswerGrammars(const Tokenizer& tokenizer, ThinkingMode mode)
    : tokens_(std::make_shared<const TokenTree>(tokenizer)),
      thinking_(mode == ThinkingMode::thinking) {}

std::shared_ptr<const Constraint> AnswerGrammars::of(const std::vector<Message>& conversation) {
  std::vector<Json> tools;
  for (const auto& message : conversation) tools.insert(tools.end(), message.tools.begin(), message.tools.end());
  std::lock_guard lock(mutex_);
  auto& known = known_[Json(tools).dump()];
  if (!known) known = std::make_shared<const Constraint>(answer_grammar(tools, thinking_, tokens_->specials), tokens_);
  return known;
}

}  // namespace fulgur
