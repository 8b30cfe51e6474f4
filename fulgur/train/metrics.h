// metrics.jsonl: one JSON object a line, each (stage, step) once whatever happened to the process.
#pragma once

#include <filesystem>
#include <vector>

#include "fulgur/base/file.h"
#include "fulgur/base/json.h"

namespace fulgur {

class Metrics {
 public:
  // Opens for appending; lines of `stage` from `step` on are dropped first, and one a crash cut: they will be made again.
  Metrics(const std::filesystem::path& path, const std::string& stage, int64_t step);
  void write(const Json& line);
  void sync();  // makes all lines durable: a checkpoint must not outlive the lines of its steps

 private:
  AppendFile out_;
};

// All lines with a stage and a step; a last line cut by a crash is left out.
std::vector<Json> read_metrics(const std::filesystem::path& path);

}  // namespace fulgur
