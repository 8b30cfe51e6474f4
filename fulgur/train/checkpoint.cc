#include "fulgur/train/checkpoint.h"

#include "fulgur/base/error.h"
#include "fulgur/base/system_memory.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/gguf_model.h"
#include "fulgur/model/published.h"

namespace fulgur {
namespace fs = std::filesystem;

void save_checkpoint(const fs::path& folder, Transformer& model, const Optimizer* optimizer, const fs::path& tokenizer,
                     const CheckpointState& state, const std::map<std::string, std::string>& more) {
  CheckpointWriter writer(folder);
  const auto& to = writer.folder();
  writer.add("config.json", write_file_atomic(to / "config.json", config_json(model.config()).dump(2) + "\n"));
  writer.add("tokenizer.json", write_file_atomic(to / "tokenizer.json", read_file(tokenizer)));
  for (const auto& [file, sum] : write_weights(to, export_weights(model.config(), model.weights()))) writer.add(file, sum);
  if (optimizer) writer.add("optimizer.safetensors", write_safetensors(to / "optimizer.safetensors", optimizer->state()));
  for (const auto& [file, bytes] : more) writer.add(file, write_file_atomic(to / file, bytes));
  writer.commit(state);
}

namespace {

constexpr const char* kPackedWeights = "packed.safetensors";
constexpr const char* kPacking = "fulgur_packing";

Json packing_json(const Packing& packing) {
  return {{"weights", kWeightFormats[int(packing.format)]},
          {"dtype", packing.type == at::kBFloat16 ? "bf16" : "f32"},
          {"attention", packing.absorbed ? "sparse" : "dense"}};
}

Packing read_packing(const Json& config, const std::string& name) {
  auto text = [&](const char* key) {
    FULGUR_CHECK(config.contains(kPacking) && config[kPacking].is_object() && config[kPacking].contains(key) &&
                     config[kPacking][key].is_string(),
                 "[model] ", name, ": ", kPacking, ".", key, ": expected a text, got none");
    return config[kPacking][key].get<std::string>();
  };
  auto one_of_two = [&](const char* key, const char* yes, const char* no) {
    auto said = text(key);
    FULGUR_CHECK(said == yes || said == no, "[model] ", name, ": ", kPacking, ".", key, ": expected ", yes, " or ", no, ", got ",
                 said);
    return said == yes;
  };
  return {one_of_two("dtype", "bf16", "f32") ? at::kBFloat16 : at::kFloat, one_of_two("attention", "sparse", "dense"),
          weight_format(text("weights"))};
}

}  // namespace

uint64_t save_packed(const fs::path& folder, const ModelConfig& config, Weights& packed) {
  Json json = config_json(config);
  json[kPacking] = packing_json(packed.packing.value());
  write_file_atomic(folder / "config.json", json.dump(2) + "\n");
  return write_safetensors(folder / kPackedWeights, export_packed(packed)).bytes;
}

namespace {

bool is_gguf(const fs::path& path) { return path.extension() == ".gguf" && !fs::is_directory(path); }

}  // namespace

fs::path find_model(const fs::path& path, const std::string& stage) {
  if (is_gguf(path)) return path;
  FULGUR_CHECK(fs::is_directory(path), "[model] ", path.string(),
               ": expected a model folder, a run directory or a GGUF file, got none");
  if (fs::exists(path / "config.json")) return path;
  for (auto name = kStageNames.rbegin(); name != kStageNames.rend(); ++name)
    if (stage.empty() || stage == *name)
      if (auto newest = newest_checkpoint(path, *name)) return *newest;
  throw InputError(cat("[model] ", path.string(), ": expected config.json, or checkpoints of a run, got neither"),
                   "give a folder with config.json and model.safetensors, or the --out folder of a training run");
}

ModelFiles::ModelFiles(const fs::path& model) : path_(model) {
  if (is_gguf(model)) gguf_.emplace(model);
}

ModelConfig ModelFiles::config() const { return gguf_ ? gguf_config(*gguf_) : read_config(path_ / "config.json"); }

std::optional<Packing> ModelFiles::packing() const {
  if (!fs::exists(path_ / kPackedWeights)) return std::nullopt;
  return read_packing(read_json(path_ / "config.json"), (path_ / "config.json").string());
}

Transformer ModelFiles::open() const {
  auto packed = packing();
  if (!packed) return load();
  auto weights = path_ / kPackedWeights;
  auto read = config();
  Transformer model(read, import_packed(read, *packed, map_safetensors(weights)));
  if (int64_t(fs::file_size(weights)) > available_memory()) model.page_experts();
  return model;
}

Transformer ModelFiles::load(bool share_mtp, const Json& changes) const {
  FULGUR_CHECK(!packing(), "[model] ", path_.string(), ": expected a model's own weights, got packed ones, which can only run",
               "\n  hint: give the model that was packed");
  if (gguf_) {
    auto config = gguf_config(*gguf_);
    return Transformer(config, import_weights(config, gguf_tensors(*gguf_, config), share_mtp));
  }
  Json json = read_json(path_ / "config.json");
  for (const auto& [key, value] : changes.items()) json[key] = value;
  auto config = parse_config(json, (path_ / "config.json").string());
  return Transformer(config, import_weights(config, unpublished(read_weights(path_)), share_mtp));
}

Vocabulary ModelFiles::vocabulary() const {
  return gguf_ ? gguf_vocabulary(*gguf_) : read_tokenizer_json(path_ / "tokenizer.json");
}

std::string ModelFiles::chat_template() const {
  const char* key = "tokenizer.chat_template";
  if (gguf_) return gguf_->has(key) ? gguf_->text(key) : "";
  if (fs::exists(path_ / "chat_template.jinja")) return read_file(path_ / "chat_template.jinja");
  if (!fs::exists(path_ / "tokenizer_config.json")) return "";
  Json config = read_json(path_ / "tokenizer_config.json");
  return config.is_object() && config.contains("chat_template") && config["chat_template"].is_string() ? config["chat_template"]
                                                                                                       : "";
}

Transformer load_model(const fs::path& model, bool share_mtp, const Json& changes) {
  return ModelFiles(model).load(share_mtp, changes);
}

}  // namespace fulgur
