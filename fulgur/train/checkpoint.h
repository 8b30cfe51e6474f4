// Checkpoints: a folder with config.json, model.safetensors, tokenizer.json (a model anyone can load), and
// optimizer.safetensors, state.json (what resuming needs). Written beside its place and renamed, so it is whole or absent.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/model/transformer.h"
#include "fulgur/train/optimizer.h"

namespace fulgur {

struct CheckpointState {
  std::string stage;
  int64_t step = 0;  // steps done
  Json facts;        // stage configuration, seed, data checksum, numeric path: must agree on resume
};

// Checkpoints are named "<stage>-<step, 8 digits>".
void save_checkpoint(const std::filesystem::path& folder, Transformer& model, const Optimizer* optimizer,
                     const std::filesystem::path& tokenizer, const CheckpointState& state);

// The folder itself when it is a model; of a run directory the newest checkpoint (of `stage` where given).
std::filesystem::path find_model(const std::filesystem::path& path, const std::string& stage = "");
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& run, const std::string& stage);

Transformer load_model(const std::filesystem::path& model_folder, bool share_mtp = true);
CheckpointState load_state(const std::filesystem::path& checkpoint);

// Deletes all but the newest `keep` checkpoints of a stage.
void prune_checkpoints(const std::filesystem::path& run, const std::string& stage, int keep);

}  // namespace fulgur
