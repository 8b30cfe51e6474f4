// fulgur tasks: the families of small verifiable tasks, one of them to look at, and demonstrations to learn from.
#include <algorithm>
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/recipe.h"
#include "fulgur/rl/config.h"
#include "fulgur/tasks/prompt_form.h"
#include "fulgur/tasks/task.h"

namespace fulgur::cli {
namespace {

struct Options {
  Demonstrations demos;
  std::string split = "train";
  uint64_t seed = 1;
};

Split split_named(const std::string& name) {
  return name == "train" ? Split::train : name == "test" ? Split::test : Split::fresh;
}

void list(bool json) {
  for (const Family* of : families()) {
    if (json)
      std::printf("%s\n", Json{{"name", of->name()}, {"hardest", of->hardest()}, {"summary", of->summary()}}.dump().c_str());
    else std::printf("%-12s 1 to %-3lld %s\n", of->name().c_str(), static_cast<long long>(of->hardest()), of->summary().c_str());
  }
}

constexpr double kRise = 0.2;  // share of the conversations: a sudden change would be a spike in the losses

// Of the forms that suit the task, in turn; one that does not where there is none, for its error.
PromptForm form_for(const Task& task, const std::vector<PromptForm>& forms, int64_t turn) {
  std::vector<PromptForm> fit;
  std::copy_if(forms.begin(), forms.end(), std::back_inserter(fit), [&](PromptForm form) { return suits(form, task); });
  return fit.empty() ? forms[0] : fit[size_t(turn) % fit.size()];
}

}  // namespace

std::string demonstrations(const Demonstrations& of, Split split, uint64_t seed) {
  auto kinds = task_kinds(of.tasks);
  auto forms = prompt_forms(of.forms);
  RandomStream random(seed, "tasks.demos");
  std::string out;
  for (int64_t i = 0; i < of.count; ++i) {
    const auto& kind = kinds[i % int64_t(kinds.size())];
    auto task = kind.family->task(split, kind.difficulty, random.bits());
    double late = (double(i) / double(of.count) - of.hasty_from) / kRise;
    bool gives_up = random.uniform() < of.hasty * (of.hasty_from > 0 ? std::clamp(late, 0.0, 1.0) : 1);
    auto form = form_for(task, forms, i / int64_t(kinds.size()));
    auto messages = json_of(demonstrate(*kind.family, in_form(form, task), gives_up ? Strategy::hasty : Strategy::right));
    auto mode = mode_of(form) == ThinkingMode::chat ? "chat" : "thinking";
    out += Json{{"id", cat(kind.family->name(), "-", i)}, {"mode", mode}, {"messages", messages}}.dump() + "\n";
  }
  return out;
}

void add_tasks(CLI::App& app, Common& common) {
  auto* command = app.add_subcommand("tasks", "Small tasks with exact verifiers, for fine-tuning and reinforcement learning");
  command->require_subcommand(1);
  command->footer("Example:\n  fulgur tasks list");
  auto* all = command->add_subcommand("list", "The families, their difficulties, what they ask");
  all->footer("Example:\n  fulgur tasks list");
  all->callback([&common] { list(common.json); });

  auto options = std::make_shared<Options>();
  auto* demos =
      command->add_subcommand("demos", "Conversations of scripts that solve tasks, as JSON Lines for `fulgur train sft`");
  demos->add_option("tasks", options->demos.tasks, "Families, as NAME or NAME:DIFFICULTY, separated by commas")->required();
  demos->add_option("--forms", options->demos.forms, "Prompts, in turn: plain, reasoning, agent, combined (thinking, with tools)")
      ->capture_default_str();
  demos->add_option("--count", options->demos.count, "Conversations")->capture_default_str()->check(CLI::PositiveNumber);
  demos->add_option("--split", options->split, "Which tasks")
      ->capture_default_str()
      ->check(CLI::IsMember({"train", "test", "fresh"}));
  demos->add_option("--hasty", options->demos.hasty, "Share of scripts that give up early, with what they have")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  demos
      ->add_option("--hasty-from", options->demos.hasty_from,
                   "Share of the conversations, the first, in which none does; then more and more do")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  demos->add_option("--seed", options->seed, "Another seed draws other tasks")->capture_default_str();
  demos->footer("Example:\n  fulgur tasks demos lookup2,calculator:2 --count 4000 --hasty 0.5 >demos.jsonl");
  demos->callback([options] {
    auto text = demonstrations(options->demos, split_named(options->split), options->seed);
    std::fwrite(text.data(), 1, text.size(), stdout);
  });
}

}  // namespace fulgur::cli
