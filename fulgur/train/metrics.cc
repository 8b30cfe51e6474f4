#include "fulgur/train/metrics.h"

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"

namespace fulgur {

std::vector<Json> read_metrics(const std::filesystem::path& path) {
  std::vector<Json> out;
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object()) out.push_back(std::move(json));
  }
  return out;
}

Metrics::Metrics(const std::filesystem::path& path, const std::string& stage, int64_t step) : path_(path) {
  std::string kept;
  for (const auto& line : read_metrics(path))
    if (line.value("stage", "") != stage || line.value("step", int64_t(0)) < step) kept += line.dump() + "\n";
  write_file_atomic(path, kept);
  out_.open(path, std::ios::app);
}

void Metrics::write(const Json& line) {
  out_ << line.dump() << "\n" << std::flush;
  FULGUR_CHECK(out_.good(), "[metrics] ", path_.string(), ": cannot write\n  hint: is the disk full?");
}

}  // namespace fulgur
