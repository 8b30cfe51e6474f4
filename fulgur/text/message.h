// Messages of a conversation, as OpenAI's chat completions have them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fulgur/base/json.h"

namespace fulgur {

enum class Role { system, user, developer, assistant, tool };

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text, an object
  std::string id;         // what its result refers to; may be empty
  bool operator==(const ToolCall&) const = default;
};

struct Message {
  Role role = Role::user;
  std::string content = {};
  std::string reasoning_content = {};     // of an assistant
  std::vector<ToolCall> tool_calls = {};  // of an assistant
  std::vector<Json> tools = {};           // of a system or developer message: each tool's "function"
  Json response_format = {};              // of a system or developer message; null: none
};

// A message of a request, read by parse_python_json where its numbers are to be printed as they came. `where` names it in errors.
// Content may be a string or a list of text parts; of a system or assistant message it may be missing. Arguments may be JSON text
// or an object. Unknown fields are ignored. Throws InputError that names the field.
Message message_of(const Json& json, const std::string& where);
std::vector<Message> messages_of(const Json& list, const std::string& where);

// The other way.
Json json_of(const Message& message);
Json json_of(const std::vector<Message>& messages);

const char* role_name(Role role);

}  // namespace fulgur
