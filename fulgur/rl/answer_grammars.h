// What holds a policy's answers to V3.2's format: text, and calls of the conversation's own tools whose arguments fit their
// schemas.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "fulgur/text/constraint.h"
#include "fulgur/text/message.h"
#include "fulgur/text/v32_encode.h"

namespace fulgur {

// Makes each list of tools' constraint once. Thread-safe.
class AnswerGrammars {
 public:
  AnswerGrammars(const Tokenizer& tokenizer, ThinkingMode mode);
  // Throws InputError where a tool's schema is outside the subset (text/schema.h).
  std::shared_ptr<const Constraint> of(const std::vector<Message>& conversation);

 private:
  std::shared_ptr<const TokenTree> tokens_;
  bool thinking_;
  std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Constraint>> known_;  // by the tools
};

}  // namespace fulgur
