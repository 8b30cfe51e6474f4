#include "fulgur/train/checkpoint_files.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "fulgur/base/error.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

constexpr int kFormat = 2;
constexpr uint64_t kMostSteps = 99999999;  // eight digits

// Folders of a stage, oldest first: the eight digits sort like the steps. Unfinished ones end in ".tmp".
std::vector<fs::path> folders(const fs::path& run, const std::string& stage, bool unfinished) {
  std::vector<fs::path> out;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints", none))
    if (entry.path().filename().string().rfind(stage + "-", 0) == 0 && (entry.path().extension() == ".tmp") == unfinished)
      out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

uint32_t crc_of(const Json& json) {
  FileSum sum;
  auto text = json.dump();
  sum.add(text.data(), text.size());
  return sum.crc32;
}

Json read_state(const fs::path& path) {
  Json json = read_json(path);
  auto require = [&](bool good, const char* key, const char* expected) {
    FULGUR_CHECK(good, "[checkpoint] ", path.string(), ": ", key, ": expected ", expected, ", got ",
                 json.is_object() && json.contains(key) ? json[key].dump().substr(0, 100) : "nothing");
  };
  require(json.is_object() && json.contains("crc32"), "crc32", "the checksum of this file");
  Json summed = json;
  summed.erase("crc32");
  require(json["crc32"] == crc_of(summed), "crc32", cat(crc_of(summed), " as the file's text has").c_str());
  auto is = [&](const char* key, auto test) { return json.contains(key) && test(json[key]); };
  auto object = [](const Json& j) { return j.is_object(); };
  require(is("format", [](const Json& j) { return j == kFormat; }), "format", cat(kFormat).c_str());
  require(is("stage", [](const Json& j) { return j.is_string(); }), "stage", "a name");
  require(is("step", [](const Json& j) { return j.is_number_unsigned() && j.get<uint64_t>() <= kMostSteps; }), "step",
          "a number of steps");
  require(is("facts", object), "facts", "an object");
  require(is("progress", object), "progress", "an object");
  require(is("files", object), "files", "an object");
  return json;
}

double valid_loss(const fs::path& folder) {
  try {
    return read_json(folder / "state.json").value("valid_loss", INFINITY);
  } catch (const std::exception&) {
    return INFINITY;  // damaged: nothing worth keeping for
  }
}

void remove_folder(const fs::path& folder) {
  std::error_code error;
  fs::remove_all(folder, error);
  if (error) std::fprintf(stderr, "[checkpoint] %s: cannot remove: %s\n", folder.c_str(), error.message().c_str());
}

}  // namespace

CheckpointWriter::CheckpointWriter(fs::path folder) : target_(std::move(folder)), temporary_(target_.string() + ".tmp") {
  make_empty_folder(temporary_);
}

CheckpointWriter::~CheckpointWriter() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(temporary_, ignored);
}

void CheckpointWriter::commit(const CheckpointState& state) {
  Json files = Json::object();
  for (const auto& [name, sum] : sums_) files[name] = {{"bytes", sum.bytes}, {"crc32", sum.crc32}};
  Json json = {{"format", kFormat},    {"stage", state.stage},       {"step", state.step},
               {"facts", state.facts}, {"progress", state.progress}, {"files", files}};
  if (state.valid_loss) json["valid_loss"] = *state.valid_loss;
  json["crc32"] = crc_of(json);
  write_file_atomic(temporary_ / "state.json", json.dump(2) + "\n");
  move_folder(temporary_, target_);
  committed_ = true;
}

CheckpointState read_checkpoint(const fs::path& folder) {
  Json json = read_state(folder / "state.json");
  for (const auto& [name, expected] : json["files"].items()) {
    auto path = folder / name;
    FULGUR_CHECK(fs::path(name).filename() == name, "[checkpoint] ", path.string(),
                 ": expected a file of the folder, got a path");
    FULGUR_CHECK(expected.is_object() && expected.contains("bytes") && expected.contains("crc32"), "[checkpoint] ", path.string(),
                 ": expected bytes and crc32, got ", expected.dump().substr(0, 100));
    std::error_code none;
    FULGUR_CHECK(fs::is_regular_file(path, none), "[checkpoint] ", path.string(), ": expected the file, got none");
    FileSum sum = sum_file(path);
    FULGUR_CHECK(expected["bytes"] == sum.bytes, "[checkpoint] ", path.string(), ": expected ", expected["bytes"].dump(),
                 " bytes, got ", sum.bytes);
    FULGUR_CHECK(expected["crc32"] == sum.crc32, "[checkpoint] ", path.string(), ": expected checksum ", expected["crc32"].dump(),
                 ", got ", sum.crc32);
  }
  CheckpointState state{json["stage"].get<std::string>(), json["step"].get<int64_t>(), json["facts"], json["progress"], {}};
  if (json.contains("valid_loss") && json["valid_loss"].is_number()) state.valid_loss = json["valid_loss"].get<double>();
  return state;
}

std::optional<fs::path> newest_checkpoint(const fs::path& run, const std::string& stage) {
  auto all = folders(run, stage, /*unfinished=*/false);
  std::string damaged;
  for (; !all.empty(); all.pop_back()) {
    try {
      read_checkpoint(all.back());
      if (!damaged.empty()) std::fprintf(stderr, "%s\n  going on from %s\n", damaged.c_str(), all.back().c_str());
      return all.back();
    } catch (const InputError& error) {
      damaged += (damaged.empty() ? "" : "\n") + std::string(error.what());
    }
  }
  if (!damaged.empty()) throw InputError(damaged, "no whole checkpoint is left; begin again with another --out");
  return std::nullopt;
}

bool has_checkpoints(const fs::path& run, const std::string& stage) { return !folders(run, stage, false).empty(); }

void prune_checkpoints(const fs::path& run, const std::string& stage, int64_t keep_last, int64_t keep_best) {
  auto all = folders(run, stage, /*unfinished=*/false);
  all.resize(std::max<int64_t>(0, int64_t(all.size()) - keep_last));
  if (all.empty()) return;
  auto recent = folders(run, stage, false);
  std::vector<std::pair<double, fs::path>> ranked;
  for (const auto& folder : recent) ranked.emplace_back(valid_loss(folder), folder);
  std::stable_sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (const auto& folder : all) {
    bool best = false;
    for (int64_t i = 0; i < std::min<int64_t>(keep_best, int64_t(ranked.size())); ++i)
      best |= ranked[i].second == folder && std::isfinite(ranked[i].first);
    if (!best) remove_folder(folder);
  }
}

void remove_unfinished(const fs::path& run, const std::string& stage) {
  for (const auto& folder : folders(run, stage, /*unfinished=*/true)) remove_folder(folder);
}

}  // namespace fulgur
