// How a task is put to a model: alone, or behind one of the cold start's three system prompts (paper, tables 6 to 8; spec H.7).
#pragma once

#include <string>
#include <vector>

#include "fulgur/tasks/task.h"
#include "fulgur/text/v32_encode.h"

namespace fulgur {

// reasoning: think, then answer; for tasks without tools.  agent: tools, no thinking.  combined: tools while thinking; such
// conversations are what reinforcement learning with thinking in tool use starts from.
enum class PromptForm { plain, reasoning, agent, combined };

// "plain,agent": names, separated by commas. Throws InputError on another name, or none.
std::vector<PromptForm> prompt_forms(const std::string& names);

// plain has none of its own: chat unless `otherwise`.
ThinkingMode mode_of(PromptForm form, ThinkingMode otherwise = ThinkingMode::chat);

bool suits(PromptForm form, const Task& task);

// The task with the form's prompt before what its system message says. Throws InputError where the form does not suit it.
Task in_form(PromptForm form, Task task);

}  // namespace fulgur
