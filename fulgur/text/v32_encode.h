// Messages to the prompt of DeepSeek-V3.2, byte for byte as its own encoder writes it.    Spec G.2, G.3; encoding_dsv32.py
#pragma once

#include <string>
#include <vector>

#include "fulgur/text/message.h"
#include "fulgur/text/prompt.h"

namespace fulgur {

enum class ThinkingMode { chat, thinking };

// Which reasoning of earlier turns stays in the prompt: none behind which a user speaks (paper); or, as DeepSeek's API has it,
// that of turns with tool calls as well, as long as the client sends it back (api).
enum class Retention { paper, api };

struct EncodeOptions {
  ThinkingMode mode = ThinkingMode::thinking;
  Retention retention = Retention::paper;
  bool add_bos = true;
};

// The prompt of `messages`, which follow those of `context`: these are in the prompt already, and with any there is no BOS.
// Thread-safe. Throws InputError that names the message: a tool's result without its call, arguments that are no JSON object, an
// assistant in thinking mode with neither reasoning nor calls behind the last user.
Prompt encode_v32(const std::vector<Message>& messages, const EncodeOptions& options = {},
                  const std::vector<Message>& context = {});

// For a tokenizer of one's own: BOS (id 0), EOS (1), turns and think tags; and the words around tools, calls and results, which
// are text to a vocabulary that has room for them. As added tokens the fixed 1,133 bytes before a list of tools are one token
// instead of hundreds; the text stays the format's to the byte.
const std::vector<std::string>& v32_special_tokens();
const std::vector<std::string>& v32_fixed_texts();

// "chat" or "thinking"; "paper" or "api".
ThinkingMode thinking_mode(const std::string& name);
Retention retention(const std::string& name);

}  // namespace fulgur
