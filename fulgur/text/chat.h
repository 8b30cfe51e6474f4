// Conversations in the format a checkpoint was trained on, as plain code: DeepSeek-V3.2's, ChatML, Llama-3's.
#pragma once

#include <string>
#include <vector>

#include "fulgur/text/message.h"
#include "fulgur/text/prompt.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/text/v32_encode.h"

namespace fulgur {

class ChatFormat {
 public:
  // By the special tokens the vocabulary has. `chat_template` is the checkpoint's own template (Jinja), of which only the system
  // message is taken that it gives a conversation without one; it may be empty. Throws InputError where no format is known.
  ChatFormat(const Tokenizer& tokenizer, const std::string& chat_template);

  const char* name() const;
  // The prompt up to where the assistant answers. Tools and their results exist in V3.2's format alone: elsewhere they throw.
  Prompt encode(const std::vector<Message>& messages, ThinkingMode mode, Retention retention) const;
  // Tokens that end an answer.
  const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
  bool is_v32() const { return kind_ == Kind::v32; }

 private:
  enum class Kind { v32, chatml, llama3 };
  Kind kind_;
  std::string system_;
  std::vector<int32_t> stop_tokens_;
};

}  // namespace fulgur
