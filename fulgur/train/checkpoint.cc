#include "fulgur/train/checkpoint.h"

#include "fulgur/base/error.h"
#include "fulgur/io/safetensors.h"

namespace fulgur {
namespace fs = std::filesystem;

void save_checkpoint(const fs::path& folder, Transformer& model, const Optimizer* optimizer, const fs::path& tokenizer,
                     const CheckpointState& state) {
  CheckpointWriter writer(folder);
  const auto& to = writer.folder();
  writer.add("config.json", write_file_atomic(to / "config.json", config_json(model.config()).dump(2) + "\n"));
  writer.add("tokenizer.json", write_file_atomic(to / "tokenizer.json", read_file(tokenizer)));
  for (const auto& [file, sum] : write_weights(to, export_weights(model.config(), model.weights()))) writer.add(file, sum);
  if (optimizer) writer.add("optimizer.safetensors", write_safetensors(to / "optimizer.safetensors", optimizer->state()));
  writer.commit(state);
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

Transformer load_model(const fs::path& folder, bool share_mtp, const Json& changes) {
  Json json = read_json(folder / "config.json");
  for (const auto& [key, value] : changes.items()) json[key] = value;
  auto config = parse_config(json, (folder / "config.json").string());
  return Transformer(config, import_weights(config, read_weights(folder), share_mtp));
}

}  // namespace fulgur
