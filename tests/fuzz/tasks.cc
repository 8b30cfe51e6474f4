// Inputs: a file of tasks of one's own.
#include "fulgur/tasks/task.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("tasks.jsonl", fuzz::view(data, size));
  fuzz::accepts([&] {
    auto family = read_family(path.string());
    for (auto split : {Split::train, Split::test})
      fuzz::accepts([&] {
        auto task = family->task(split, 1, 3);
        fuzz::promise(split_of(task.key) == split && task.messages.size() == 1, "a task is of its split");
        auto conversation = demonstrate(*family, task, Strategy::right);
        auto episode = family->begin(task);
        episode->answer(conversation.back());
        bool exact = task.data["given"].is_null();
        fuzz::promise(!exact || episode->score() == 1, "the script's answer is right");
      });
  });
  return 0;
}
