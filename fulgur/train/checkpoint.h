// Models and optimiser states in checkpoints; the files themselves are checkpoint_files.h's. A checkpoint holds config.json,
// model.safetensors, tokenizer.json (a Hugging Face model folder), optimizer.safetensors and state.json.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "fulgur/io/gguf.h"
#include "fulgur/model/transformer.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/train/checkpoint_files.h"
#include "fulgur/train/optimizer.h"

namespace fulgur {

// Whole or absent, whatever happens. `optimizer` may be null; `more` are other files' bytes, by name.
void save_checkpoint(const std::filesystem::path& folder, Transformer& model, const Optimizer* optimizer,
                     const std::filesystem::path& tokenizer, const CheckpointState& state,
                     const std::map<std::string, std::string>& more = {});

// A model as inference reads it (pack_weights), in one file that open() maps: config.json says how it was packed, and
// packed.safetensors has the weights. `folder` must exist. Bytes of weights.
uint64_t save_packed(const std::filesystem::path& folder, const ModelConfig& config, Weights& packed);

// A GGUF file, or the folder itself when it is a model; of a run directory the newest whole checkpoint (of `stage` where given).
std::filesystem::path find_model(const std::filesystem::path& path, const std::string& stage = "");

// What find_model gave, opened once. Throws InputError that names what is missing or does not fit.
class ModelFiles {
 public:
  explicit ModelFiles(const std::filesystem::path& model);
  ModelConfig config() const;
  std::optional<Packing> packing() const;  // of a packed model
  // `changes` are keys of config.json that take the place of the folder's.
  Transformer load(bool share_mtp = true, const Json& changes = Json::object()) const;
  // To run alone: of a packed model its weights where they lie, memory-mapped, with experts paged in where memory is less than
  // the file; of others as load() has it.
  Transformer open() const;
  Vocabulary vocabulary() const;
  std::string chat_template() const;  // empty where there is none

 private:
  std::filesystem::path path_;
  std::optional<Gguf> gguf_;  // else it is a folder
};

Transformer load_model(const std::filesystem::path& model, bool share_mtp = true, const Json& changes = Json::object());

}  // namespace fulgur
