#include "fulgur/train/metrics.h"

#include <fstream>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

// The path itself, behind a rewrite that keeps only what came before (stage, step).
const std::filesystem::path& cut(const std::filesystem::path& path, const std::string& stage, int64_t step) {
  std::string kept;
  for (const auto& line : read_metrics(path))
    if (line.value("stage", "") != stage || line.value("step", int64_t(0)) < step) kept += line.dump() + "\n";
  write_file_atomic(path, kept);
  return path;
}

}  // namespace

std::vector<Json> read_metrics(const std::filesystem::path& path) {
  std::vector<Json> out;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    Json json;
    try {
      json = parse_json(line, path.string());
    } catch (const InputError&) {
      continue;
    }
    bool whole = json.is_object() && json.contains("stage") && json["stage"].is_string() && json.contains("step") &&
                 json["step"].is_number_integer();
    if (whole) out.push_back(std::move(json));
  }
  return out;
}

Metrics::Metrics(const std::filesystem::path& path, const std::string& stage, int64_t step) : out_(cut(path, stage, step)) {}

void Metrics::write(const Json& line) { out_.write(line.dump() + "\n"); }

void Metrics::sync() { out_.sync(); }

}  // namespace fulgur
