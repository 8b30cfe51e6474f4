// Inputs: metrics.jsonl of a run that was killed; a resumed run drops the lines it will make again, and goes on.
#include "fulgur/train/metrics.h"

#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("metrics.jsonl", fuzz::view(data, size));
  size_t before = 0;
  auto resume = [&] {
    before = read_metrics(path).size();
    Metrics metrics(path, "pretrain", 3);
    metrics.write({{"stage", "pretrain"}, {"step", 3}});
    metrics.sync();
  };
  if (!fuzz::accepts(resume)) return 0;
  auto lines = read_metrics(path);
  fuzz::promise(!lines.empty() && lines.size() <= before + 1, "a resumed run adds its own lines only");
  int64_t again = 0;
  for (const auto& line : lines) again += line.value("stage", "") == "pretrain" && line.value("step", int64_t(0)) >= 3;
  fuzz::promise(again == 1 && lines.back().value("step", 0) == 3, "each step has one line");
  return 0;
}
