// One self-contained HTML page from a run's records: losses, KL and recall a layer, expert load, selected keys, cost
// against context, samples, configuration. Charts by Chart.js, embedded; the page asks the network for nothing.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "fulgur/base/json.h"

namespace fulgur {

// Writes RUN/report.html, or `out`, from run.json, metrics.jsonl and eval.json (where there is one); returns its path.
std::filesystem::path write_report(const std::filesystem::path& run, std::filesystem::path out = {});

// What a run directory holds: what both the report and compare.h start from.
struct RunRecords {
  std::string name;  // the directory's own
  std::filesystem::path path;
  Json record;                                      // run.json
  Json eval;                                        // null where there is none
  std::map<std::string, std::vector<Json>> stages;  // lines of metrics.jsonl, by stage

  const std::vector<Json>& lines(const std::string& stage) const;  // none where the run has no such stage
};
// Throws InputError where there is no run.json.
RunRecords read_run(const std::filesystem::path& run);

// At most about `points` lines of a stage, evenly spaced; lines with a probe always stay. "weight": steps a line stands for.
Json thinned(const std::vector<Json>& lines, size_t points);
// The page with report_common.html, Chart.js and data in their places.
std::string filled_page(std::string_view page, const Json& data);

}  // namespace fulgur
