// Tools that take one text, and their calls.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fulgur/tasks/task.h"

namespace fulgur {

struct Tool {
  std::string name, description, parameter;

  Json schema() const;
  // A system message that has it, and the question.
  std::vector<Message> offer(const std::string& question) const;
  Message call(const std::string& argument, const std::string& thought) const;
  // The argument of a call; none: it does not fit, and the result is complaint().
  std::optional<std::string> argument_of(const ToolCall& call) const;
  std::string complaint() const;
};

// How many results there are.
int64_t results_in(const std::vector<Message>& conversation);

}  // namespace fulgur
