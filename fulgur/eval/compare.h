// Runs side by side, from their records: which settings differ, whether losses are the same bit for bit, the last figures
// with differences to the first run, and every curve overlaid on one self-contained HTML page.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "fulgur/base/json.h"

namespace fulgur {

// Writes `out` (default: compare.html in the first run's directory) and returns the summary:
//   report         its path
//   runs           [{name, path}]
//   common_stages  those all runs have
//   losses         for each stage and run behind the first, over the steps that both have: stage, run, steps, identical,
//                  says; and where they differ first_step, first_loss, largest {loss: {difference, step}}
//   figures        [{stage, figure, digits, values, differences}], null where a run has none
//   settings       [{key, values}] of run.json that differ, null where a run has none
// Throws InputError for a directory without run.json.
Json compare_runs(const std::vector<std::filesystem::path>& runs, std::filesystem::path out = {});

// The summary as tables for a console.
std::string comparison_text(const Json& summary);

}  // namespace fulgur
