// One self-contained HTML page from a run's records: losses, KL and recall a layer, expert load, selected keys, cost
// against context, samples, configuration. Charts by Chart.js, embedded; the page asks the network for nothing.
#pragma once

#include <filesystem>

namespace fulgur {

// Writes RUN/report.html from run.json, metrics.jsonl and eval.json (where there is one); returns its path.
std::filesystem::path write_report(const std::filesystem::path& run);

}  // namespace fulgur
