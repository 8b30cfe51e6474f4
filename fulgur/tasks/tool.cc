#include "fulgur/tasks/tool.h"

#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"

namespace fulgur {

Json Tool::schema() const {
  Json parameters{
      {"type", "object"}, {"properties", {{parameter, {{"type", "string"}}}}}, {"required", Json::array({parameter})}};
  return {{"name", name}, {"description", description}, {"parameters", parameters}};
}

std::vector<Message> Tool::offer(const std::string& question) const {
  Message system{Role::system, "Use the tool."};
  system.tools = {schema()};
  return {system, {Role::user, question}};
}

Message Tool::call(const std::string& argument, const std::string& thought) const {
  Message out{Role::assistant, "", thought};
  out.tool_calls = {{name, dump_python_json(Json{{parameter, argument}}), ""}};
  return out;
}

std::optional<std::string> Tool::argument_of(const ToolCall& call) const {
  try {
    auto arguments = parse_json(call.arguments, name);
    if (!arguments.is_object() || !arguments.contains(parameter) || !arguments[parameter].is_string()) return {};
    return arguments[parameter].get<std::string>();
  } catch (const InputError&) {  // no JSON
    return {};
  }
}

std::string Tool::complaint() const { return cat("error: expected {\"", parameter, "\": TEXT}"); }

int64_t results_in(const std::vector<Message>& conversation) {
  return std::count_if(conversation.begin(), conversation.end(), [](const Message& m) { return m.role == Role::tool; });
}

}  // namespace fulgur
