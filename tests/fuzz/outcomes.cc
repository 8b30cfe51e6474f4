// Inputs: outcomes.jsonl of a run that was killed; a resumed run reads it and goes on.
#include "fulgur/rl/rewards/journal.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("outcomes.jsonl", fuzz::view(data, size));
  size_t before = 0;
  bool known = false;
  auto go_on = [&] {
    OutcomeJournal journal(path);
    before = journal.size(), known = journal.find("7.1.0").has_value();
    journal.append({{"7.1.0", {0.5, "why", {{"a", 1}}}}});
    fuzz::promise(journal.find("7.1.0").has_value(), "what is journaled is found");
  };
  if (!fuzz::accepts(go_on)) return 0;
  OutcomeJournal again(path);
  fuzz::promise(again.size() == before + !known, "a journal keeps what it had, and what was added");
  fuzz::promise(known || again.find("7.1.0")->score == 0.5, "and gives it back");
  return 0;
}
