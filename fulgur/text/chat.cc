#include "fulgur/text/chat.h"

#include "fulgur/base/error.h"
#include "fulgur/text/v32_format.h"

namespace fulgur {
namespace {

constexpr std::string_view kImStart = "<|im_start|>", kImEnd = "<|im_end|>";
constexpr std::string_view kHeader = "<|start_header_id|>", kHeaderEnd = "<|end_header_id|>", kTurnEnd = "<|eot_id|>";

// The words of a system message that a template writes out.
std::string system_of(const std::string& chat_template) {
  const std::string begin = cat(kImStart, "system\n");
  size_t from = chat_template.find(begin);
  for (std::string escaped = cat(kImStart, "system\\n"); from == std::string::npos;) {
    from = chat_template.find(escaped);
    if (from == std::string::npos) return "";
    from += escaped.size() - begin.size();
  }
  from += begin.size();
  size_t end = chat_template.find(kImEnd, from), quote = chat_template.find('\'', from);
  return end == std::string::npos || quote < end ? "" : chat_template.substr(from, end - from);
}

std::string_view plain_role(const Message& message, const std::string& format) {
  FULGUR_CHECK(message.role == Role::system || message.role == Role::user || message.role == Role::assistant, "[messages] ",
               format, ": expected system, user and assistant messages, got ", role_name(message.role));
  FULGUR_CHECK(message.tools.empty() && message.tool_calls.empty(), "[messages] ", format, ": expected no tools, got some");
  return role_name(message.role);
}

}  // namespace

ChatFormat::ChatFormat(const Tokenizer& tokenizer, const std::string& chat_template) {
  auto has = [&](std::string_view token) { return tokenizer.id(token) >= 0; };
  std::string_view end;
  if (has(v32::kUser) && has(v32::kAssistant)) kind_ = Kind::v32, end = v32::kEos;
  else if (has(kImStart) && has(kImEnd)) kind_ = Kind::chatml, end = kImEnd, system_ = system_of(chat_template);
  else if (has(kHeader) && has(kTurnEnd)) kind_ = Kind::llama3, end = kTurnEnd;
  else
    throw InputError("[chat] expected the special tokens of DeepSeek-V3.2, ChatML or Llama-3 in the vocabulary, got none of them",
                     "this is a model of plain text: use `fulgur generate`");
  stop_tokens_.push_back(tokenizer.id(end));
}

const char* ChatFormat::name() const {
  return kind_ == Kind::v32 ? "DeepSeek-V3.2" : kind_ == Kind::chatml ? "ChatML" : "Llama-3";
}

Prompt ChatFormat::encode(const std::vector<Message>& messages, ThinkingMode mode, Retention retention) const {
  if (kind_ == Kind::v32) return encode_v32(messages, {mode, retention, true});
  Prompt out;
  auto turn = [&](std::string_view role, std::string_view content) {
    if (kind_ == Kind::chatml) out.add(cat(kImStart, role, "\n")), out.add_plain(content), out.add(cat(kImEnd, "\n"));
    else out.add(cat(kHeader, role, kHeaderEnd, "\n\n")), out.add_plain(content), out.add(kTurnEnd);
  };
  if (kind_ == Kind::llama3) out.add("<|begin_of_text|>");
  if (!system_.empty() && (messages.empty() || messages[0].role != Role::system)) turn("system", system_);
  for (const auto& message : messages) turn(plain_role(message, name()), message.content);
  if (kind_ == Kind::chatml) out.add(cat(kImStart, "assistant\n"));
  else out.add(cat(kHeader, "assistant", kHeaderEnd, "\n\n"));
  return out;
}

}  // namespace fulgur
