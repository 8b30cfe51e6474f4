// How conversations are read: what of them is a sample, and what of it is learned.
#include <algorithm>
#include <fstream>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/train/conversations.h"

namespace fulgur {
namespace {

bool asks(const Message& m) { return m.role == Role::user || m.role == Role::developer; }

ThinkingMode guessed_mode(const std::vector<Message>& messages) {
  for (size_t i = messages.size(); i > 0 && !asks(messages[i - 1]); --i)
    if (!messages[i - 1].reasoning_content.empty()) return ThinkingMode::thinking;
  return ThinkingMode::chat;
}

// The user turn at `user` and what follows up to `end`. Pieces are tokenised apart, as a policy's answers are.
Sample sample_of(const std::vector<Message>& messages, size_t user, size_t end, ThinkingMode mode, const Tokenizer& tokenizer) {
  Sample out;
  EncodeOptions options{.mode = mode};
  std::vector<Message> context(messages.begin(), messages.begin() + user + 1);
  out.tokens = tokenizer.encode(encode_v32(context, options));
  out.prompt = int64_t(out.tokens.size());
  for (size_t i = user + 1; i < end;) {
    size_t first = i++;
    while (messages[first].role == Role::tool && i < end && messages[i].role == Role::tool) ++i;
    std::vector<Message> piece(messages.begin() + first, messages.begin() + i);
    auto ids = tokenizer.encode(encode_v32(piece, options, context));
    out.learned.resize(out.tokens.size());
    out.tokens.insert(out.tokens.end(), ids.begin(), ids.end());
    out.learned.resize(out.tokens.size(), messages[first].role == Role::assistant);
    context.insert(context.end(), piece.begin(), piece.end());
  }
  return out;
}

}  // namespace

std::vector<Sample> samples_of(const std::vector<Message>& messages, ThinkingMode mode, const Tokenizer& tokenizer) {
  std::vector<Sample> out;
  for (size_t user = 0; user < messages.size(); ++user) {
    if (!asks(messages[user])) continue;
    size_t end = user + 1;
    while (end < messages.size() && !asks(messages[end])) ++end;
    if (end == user + 1) continue;
    auto sample = sample_of(messages, user, end, mode, tokenizer);
    if (std::find(sample.learned.begin(), sample.learned.end(), true) != sample.learned.end()) out.push_back(std::move(sample));
  }
  FULGUR_CHECK(!out.empty(), "[messages] expected an assistant's answer behind a user's message, got none");
  return out;
}

std::vector<Sample> read_conversations(const std::filesystem::path& path, const Tokenizer& tokenizer, int64_t longest) {
  std::ifstream file(path);
  FULGUR_CHECK(file, "[sft] ", path.string(), ": expected a file of conversations, got none that can be read");
  std::vector<Sample> out;
  std::string text;
  for (int64_t line = 1; std::getline(file, text); ++line) {
    if (text.empty()) continue;
    auto where = cat(path.string(), ":", line);
    Json json = parse_python_json(text, where);
    FULGUR_CHECK(json.is_object() && json.contains("messages"), "[sft] ", where, ": expected an object with messages, got ",
                 text.substr(0, 80));
    try {
      auto messages = messages_of(json["messages"], "messages");
      auto mode = json.contains("mode") ? thinking_mode(json["mode"].is_string() ? json["mode"].get<std::string>() : "")
                                        : guessed_mode(messages);
      for (auto& sample : samples_of(messages, mode, tokenizer)) {
        FULGUR_CHECK(int64_t(sample.tokens.size()) <= longest, "[sft] expected a sample of at most ", longest, " tokens, got ",
                     sample.tokens.size(), "\n  hint: a longer --context");
        out.push_back(std::move(sample));
      }
    } catch (const InputError& error) {
      throw InputError(cat("[sft] ", where, ": ", error.what()));
    }
  }
  FULGUR_CHECK(!out.empty(), "[sft] ", path.string(), ": expected conversations, got an empty file");
  return out;
}

}  // namespace fulgur
