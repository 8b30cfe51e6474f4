#include "fulgur/text/v32_encode.h"

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/text/v32_format.h"

namespace fulgur {
namespace {

using namespace v32;

// DeepSeek's words (MIT licence).
constexpr const char* kTools = R"~(## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
)~";
constexpr const char* kResponseFormat = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

class Encoder {
 public:
  Encoder(const std::vector<Message>& messages, const EncodeOptions& options) : messages_(messages), options_(options) {
    for (last_user_ = int64_t(messages_.size()) - 1; last_user_ >= 0 && !asks(last_user_);) --last_user_;
  }

  void add(int64_t i) {
    const Message& m = messages_[i];
    if (m.role == Role::tool) return add_result(i);
    if (m.role == Role::assistant) return add_answer(i);
    if (m.role != Role::system) out.add(kUser);
    if (m.role != Role::developer) out.add_plain(m.content);
    if (m.role != Role::user) add_extras(m);
    if (m.role == Role::developer) {
      out.add("\n\n# The user's message is: ");
      out.add_plain(m.content);
    }
    if (m.role != Role::system) out.add(kAssistant), out.add(opening(i));
  }

  Prompt out;

 private:
  bool thinking() const { return options_.mode == ThinkingMode::thinking; }
  bool asks(int64_t i) const { return messages_[i].role == Role::user || messages_[i].role == Role::developer; }
  bool answers(int64_t i) const { return i >= 0 && i < int64_t(messages_.size()) && messages_[i].role == Role::assistant; }

  // An assistant's reasoning from before the last user: of a turn with tool calls, and where the prompt opens for it.
  bool kept(int64_t i) const {
    if (options_.retention == Retention::paper || i == 0 || !answers(i) || messages_[i].reasoning_content.empty()) return false;
    if (!asks(i - 1) && messages_[i - 1].role != Role::tool) return false;
    int64_t first = i;
    while (first > 0 && !asks(first)) --first;
    for (int64_t j = first + asks(first); j < int64_t(messages_.size()) && !asks(j); ++j)
      if (!messages_[j].tool_calls.empty()) return true;
    return false;
  }

  // What an assistant's answer begins with, behind a question or a tool's result.
  std::string_view opening(int64_t i) const { return thinking() && (i >= last_user_ || kept(i + 1)) ? kThink : kThinkEnd; }

  void add_extras(const Message& m) {
    if (!m.tools.empty()) {
      out.add("\n\n"), out.add(kTools);
      for (const auto& function : m.tools) out.add_plain(dump_python_json(function)), out.add("\n");
      out.add("</functions>\n");
    }
    if (m.response_format.is_null()) return;
    out.add("\n\n"), out.add(kResponseFormat);
    out.add_plain(dump_python_json(m.response_format));
  }

  void add_answer(int64_t i) {
    const Message& m = messages_[i];
    auto where = cat("messages[", i, "]");
    if (thinking() && (i > last_user_ || kept(i))) {
      FULGUR_CHECK(
          !m.reasoning_content.empty() || !m.tool_calls.empty(), "[messages] ", where,
          ": expected reasoning_content or tool_calls of an assistant behind the last user in thinking mode, got neither");
      out.add_plain(m.reasoning_content), out.add(kThinkEnd);
    }
    out.add_plain(m.content);
    for (size_t call = 0; call < m.tool_calls.size(); ++call) {
      out.add(call > 0 ? "\n" : cat("\n\n", kCalls, ">\n"));
      add_call(m.tool_calls[call], cat(where, ".tool_calls[", call, "].function.arguments"));
    }
    if (!m.tool_calls.empty()) out.add(cat("\n", kCallsEnd));
    out.add(kEos);
  }

  void add_call(const ToolCall& call, const std::string& where) {
    Json arguments = parse_python_json(call.arguments, where);
    FULGUR_CHECK(arguments.is_object(), "[messages] ", where, ": expected a JSON object, got ", call.arguments.substr(0, 100));
    out.add(cat(kInvoke, " name=\"")), out.add_plain(call.name), out.add("\">\n");
    const char* between = "";
    for (const auto& [key, value] : arguments.items()) {
      out.add(cat(between, kParameter, " name=\"")), out.add_plain(key);
      out.add(value.is_string() ? "\" string=\"true\">" : "\" string=\"false\">");
      out.add_plain(value.is_string() ? value.get<std::string>() : dump_python_json(value));
      out.add(cat("<", kParameterEnd, ">"));
      between = "\n";
    }
    out.add(cat("\n", kInvokeEnd, ">"));
  }

  void add_result(int64_t i) {
    int64_t from = i;
    while (from >= 0 && messages_[from].role == Role::tool) --from;
    int64_t position = i - from, calls = answers(from) ? int64_t(messages_[from].tool_calls.size()) : 0;
    FULGUR_CHECK(position <= calls, "[messages] messages[", i, "]: expected a call for each tool's result, got result ", position,
                 " behind ", calls, " calls");
    if (position == 1) out.add("\n\n<function_results>");
    out.add("\n<result>"), out.add_plain(messages_[i].content), out.add("</result>");
    if (position == calls) out.add("\n</function_results>\n\n"), out.add(opening(i));
  }

  const std::vector<Message>& messages_;
  EncodeOptions options_;
  int64_t last_user_;
};

}  // namespace

Prompt encode_v32(const std::vector<Message>& messages, const EncodeOptions& options, const std::vector<Message>& context) {
  std::vector<Message> all = context;
  all.insert(all.end(), messages.begin(), messages.end());
  Encoder encoder(all, options);
  if (options.add_bos && context.empty()) encoder.out.add(kBos);
  for (size_t i = context.size(); i < all.size(); ++i) encoder.add(int64_t(i));
  return encoder.out;
}

const std::vector<std::string>& v32_special_tokens() {
  static const std::vector<std::string> tokens{std::string(kBos),       std::string(kEos),   std::string(kUser),
                                               std::string(kAssistant), std::string(kThink), std::string(kThinkEnd)};
  return tokens;
}

const std::vector<std::string>& v32_fixed_texts() {
  static const std::vector<std::string> texts = [] {
    std::string invoke = cat(kInvoke, " name=\""), parameter = cat(kParameter, " name=\""), end = cat("<", kParameterEnd, ">");
    std::string invoke_end = cat("\n", kInvokeEnd, ">"), calls_end = cat("\n", kCallsEnd);
    return std::vector<std::string>{cat("\n\n", kTools),
                                    "</functions>\n",
                                    cat("\n\n", kCalls, ">\n", invoke),  // the first call,
                                    cat("\n", invoke),                   // and others
                                    cat("\">\n", parameter),             // the first parameter,
                                    cat(end, "\n", parameter),           // and others
                                    std::string(kIsString),
                                    std::string(kIsOther),
                                    cat(end, invoke_end),
                                    cat(end, invoke_end, calls_end),
                                    cat("\">\n", invoke_end),  // of a call without parameters
                                    calls_end,
                                    "\n\n<function_results>\n<result>",
                                    "</result>\n<result>",
                                    "</result>\n</function_results>\n\n"};
  }();
  return texts;
}

ThinkingMode thinking_mode(const std::string& name) {
  FULGUR_CHECK(name == "chat" || name == "thinking", "[messages] thinking_mode: expected chat or thinking, got '", name, "'");
  return name == "chat" ? ThinkingMode::chat : ThinkingMode::thinking;
}

Retention retention(const std::string& name) {
  FULGUR_CHECK(name == "paper" || name == "api", "[messages] retention: expected paper or api, got '", name, "'");
  return name == "api" ? Retention::api : Retention::paper;
}

}  // namespace fulgur
