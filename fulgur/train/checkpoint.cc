#include "fulgur/train/checkpoint.h"

#include <algorithm>
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/io/safetensors.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

std::vector<fs::path> checkpoints(const fs::path& run, const std::string& stage) {
  std::vector<fs::path> out;
  if (fs::is_directory(run / "checkpoints"))
    for (const auto& entry : fs::directory_iterator(run / "checkpoints"))
      if (entry.path().filename().string().rfind(stage + "-", 0) == 0 && entry.path().extension() != ".tmp")
        out.push_back(entry.path());
  std::sort(out.begin(), out.end());
  return out;
}

}  // namespace

void save_checkpoint(const fs::path& folder, Transformer& model, const Optimizer* optimizer, const fs::path& tokenizer,
                     const CheckpointState& state) {
  auto temporary = folder;
  temporary += ".tmp";
  fs::remove_all(temporary);
  fs::create_directories(temporary);
  write_file_atomic(temporary / "config.json", config_json(model.config()).dump(2) + "\n");
  write_file_atomic(temporary / "tokenizer.json", read_file(tokenizer));
  write_weights(temporary, export_weights(model.config(), model.weights()));
  if (optimizer) write_safetensors(temporary / "optimizer.safetensors", optimizer->state());
  Json json = {{"stage", state.stage}, {"step", state.step}, {"facts", state.facts}};
  write_file_atomic(temporary / "state.json", json.dump(2) + "\n");
  fs::remove_all(folder);
  fs::rename(temporary, folder);
}

std::optional<fs::path> newest_checkpoint(const fs::path& run, const std::string& stage) {
  auto all = checkpoints(run, stage);
  return all.empty() ? std::nullopt : std::optional(all.back());
}

fs::path find_model(const fs::path& path, const std::string& stage) {
  FULGUR_CHECK(fs::is_directory(path), "[model] ", path.string(), ": expected a model folder or a run directory, got none");
  if (fs::exists(path / "config.json")) return path;
  for (std::string candidate : {"sparse", "warmup", "pretrain"})
    if (stage.empty() || stage == candidate)
      if (auto newest = newest_checkpoint(path, candidate)) return *newest;
  throw InputError(cat("[model] ", path.string(), ": expected config.json, or checkpoints of a run, got neither"),
                   "give a folder with config.json and model.safetensors, or the --out folder of a training run");
}

Transformer load_model(const fs::path& folder, bool share_mtp) {
  auto config = read_config(folder / "config.json");
  return Transformer(config, import_weights(config, read_weights(folder), share_mtp));
}

CheckpointState load_state(const fs::path& checkpoint) {
  auto path = checkpoint / "state.json";
  Json json = read_json(path);
  FULGUR_CHECK(json.is_object() && json.contains("stage") && json.contains("step") && json["stage"].is_string() &&
                   json["step"].is_number_integer() && json.contains("facts"),
               "[checkpoint] ", path.string(), ": expected stage, step and facts, got ", json.dump().substr(0, 100));
  return {json["stage"].get<std::string>(), json["step"].get<int64_t>(), json["facts"]};
}

void prune_checkpoints(const fs::path& run, const std::string& stage, int keep) {
  auto all = checkpoints(run, stage);
  for (int i = 0; i + keep < int(all.size()); ++i) fs::remove_all(all[i]);
}

}  // namespace fulgur
