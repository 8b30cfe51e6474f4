#include "fulgur/text/message.h"

#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"

namespace fulgur {
namespace {

constexpr const char* kRoles[] = {"system", "user", "developer", "assistant", "tool"};

[[noreturn]] void fail(const std::string& where, const std::string& expected, const Json& got) {
  throw InputError(cat("[messages] ", where, ": expected ", expected, ", got ", dump_python_json(got).substr(0, 100)));
}

const Json& field(const Json& json, const char* name) {
  static const Json kNone;
  auto found = json.find(name);
  return found == json.end() ? kNone : *found;
}

std::string text_of(const Json& json, const std::string& where) {
  if (!json.is_string()) fail(where, "a string", json);
  return json.get<std::string>();
}

std::string content_of(const Json& json, bool optional, const std::string& where) {
  if (json.is_null() && optional) return "";
  if (!json.is_array()) return text_of(json, where);
  std::string out;
  for (size_t i = 0; i < json.size(); ++i) {
    auto part = cat(where, "[", i, "]");
    if (!json[i].is_object() || field(json[i], "type") != "text") fail(part, R"(a part {"type": "text"})", json[i]);
    out += text_of(field(json[i], "text"), part + ".text");
  }
  return out;
}

ToolCall call_of(const Json& json, const std::string& where) {
  if (!json.is_object() || !field(json, "function").is_object()) fail(where, R"({"function": {"name", "arguments"}})", json);
  const Json &function = json["function"], &arguments = field(function, "arguments"), &id = field(json, "id");
  return {text_of(field(function, "name"), where + ".function.name"),
          arguments.is_object() ? dump_python_json(arguments) : text_of(arguments, where + ".function.arguments"),
          id.is_string() ? id.get<std::string>() : ""};
}

const Json& list_of(const Json& json, const char* name, const std::string& where) {
  static const Json kNone = Json::array();
  const Json& list = field(json, name);
  if (list.is_null()) return kNone;
  if (!list.is_array()) fail(cat(where, ".", name), "a list", list);
  return list;
}

// What Python takes for false, as the reference does, is no format.
bool is_format(const Json& json) {
  return !(json.is_null() || json == false || json == 0 || json == "" || (json.is_structured() && json.empty()));
}

}  // namespace

const char* role_name(Role role) { return kRoles[int(role)]; }

Message message_of(const Json& json, const std::string& where) {
  if (!json.is_object()) fail(where, "an object", json);
  const Json& role = field(json, "role");
  auto known = std::find_if(std::begin(kRoles), std::end(kRoles), [&](const char* name) { return role == name; });
  if (known == std::end(kRoles)) fail(where + ".role", "system, user, developer, assistant or tool", role);
  Message out;
  out.role = Role(known - std::begin(kRoles));
  bool optional = out.role == Role::system || out.role == Role::assistant;
  out.content = content_of(field(json, "content"), optional, where + ".content");
  if (out.role == Role::assistant) {
    out.reasoning_content = content_of(field(json, "reasoning_content"), true, where + ".reasoning_content");
    const Json& calls = list_of(json, "tool_calls", where);
    for (size_t i = 0; i < calls.size(); ++i) out.tool_calls.push_back(call_of(calls[i], cat(where, ".tool_calls[", i, "]")));
  } else if (out.role == Role::system || out.role == Role::developer) {
    const Json& tools = list_of(json, "tools", where);
    for (size_t i = 0; i < tools.size(); ++i) {
      auto tool = cat(where, ".tools[", i, "]");
      if (!tools[i].is_object() || !field(tools[i], "function").is_object()) fail(tool, R"({"function": {...}})", tools[i]);
      out.tools.push_back(tools[i]["function"]);
    }
    if (is_format(field(json, "response_format"))) out.response_format = json["response_format"];
  }
  return out;
}

std::vector<Message> messages_of(const Json& list, const std::string& where) {
  if (!list.is_array()) fail(where, "a list of messages", list);
  std::vector<Message> out;
  for (size_t i = 0; i < list.size(); ++i) out.push_back(message_of(list[i], cat(where, "[", i, "]")));
  return out;
}

Json json_of(const Message& message) {
  Json out{{"role", role_name(message.role)}, {"content", message.content}};
  if (!message.reasoning_content.empty()) out["reasoning_content"] = message.reasoning_content;
  for (const auto& call : message.tool_calls) {
    Json json{{"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
    if (!call.id.empty()) json["id"] = call.id;
    out["tool_calls"].push_back(json);
  }
  for (const auto& tool : message.tools) out["tools"].push_back({{"type", "function"}, {"function", tool}});
  if (!message.response_format.is_null()) out["response_format"] = message.response_format;
  return out;
}

Json json_of(const std::vector<Message>& messages) {
  Json out = Json::array();
  for (const auto& message : messages) out.push_back(json_of(message));
  return out;
}

}  // namespace fulgur
