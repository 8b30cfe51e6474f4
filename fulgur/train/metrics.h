// metrics.jsonl: one JSON object a line, each (stage, step) once whatever happened to the process.
#pragma once

#include <filesystem>
#include <fstream>
#include <vector>

#include "fulgur/base/json.h"

namespace fulgur {

class Metrics {
 public:
  // Opens for appending; lines of `stage` from `step` on are dropped first: they will be made again.
  Metrics(const std::filesystem::path& path, const std::string& stage, int64_t step);
  void write(const Json& line);

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

// All whole lines; a last line cut by a crash is left out.
std::vector<Json> read_metrics(const std::filesystem::path& path);

}  // namespace fulgur
