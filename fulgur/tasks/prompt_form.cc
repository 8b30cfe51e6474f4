#include "fulgur/tasks/prompt_form.h"

#include <algorithm>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

struct Form {
  const char* name;
  const char* prompt;
};
// The paper's prompts name Python and Jupyter; tools and the format of calls stand behind them in V3.2's own words.
constexpr Form kForms[] = {
    {"plain", ""},
    {"reasoning", "You solve problems. Reason inside of the thinking tags; behind the closing tag stands the answer alone."},
    {"agent",
     "You may use the tools below, which nobody else sees. A call ends after 120 seconds. Keep strictly to the format of calls."},
    {"combined",
     "Reason inside of the thinking tags, and use the tools below while you do: early, several times if need be, 20 times at "
     "most. "
     "Keep strictly to the format of calls. The final answer has no calls."}};

const Form& of(PromptForm form) { return kForms[size_t(form)]; }

}  // namespace

std::vector<PromptForm> prompt_forms(const std::string& names) {
  std::vector<PromptForm> out;
  for (size_t at = 0; at <= names.size();) {
    size_t comma = std::min(names.find(',', at), names.size());
    auto name = names.substr(at, comma - at);
    auto* found = std::find_if(std::begin(kForms), std::end(kForms), [&](const Form& form) { return form.name == name; });
    FULGUR_CHECK(found != std::end(kForms), "[tasks] form: expected plain, reasoning, agent or combined, got '", name, "'");
    out.push_back(PromptForm(found - std::begin(kForms)));
    at = comma + 1;
  }
  return out;
}

ThinkingMode mode_of(PromptForm form, ThinkingMode otherwise) {
  if (form == PromptForm::plain) return otherwise;
  return form == PromptForm::agent ? ThinkingMode::chat : ThinkingMode::thinking;
}

bool suits(PromptForm form, const Task& task) {
  bool tools = std::any_of(task.messages.begin(), task.messages.end(), [](const Message& m) { return !m.tools.empty(); });
  return form == PromptForm::plain || tools == (form != PromptForm::reasoning);
}

Task in_form(PromptForm form, Task task) {
  FULGUR_CHECK(suits(form, task), "[tasks] ", task.family, ": expected a task ",
               form == PromptForm::reasoning ? "without tools" : "with tools", " for the form ", of(form).name, ", got another");
  if (form == PromptForm::plain) return task;
  if (task.messages.empty() || task.messages[0].role != Role::system)
    task.messages.insert(task.messages.begin(), Message{Role::system, ""});
  auto& content = task.messages[0].content;
  content = cat(of(form).prompt, content.empty() ? "" : "\n", content);
  return task;
}

}  // namespace fulgur
