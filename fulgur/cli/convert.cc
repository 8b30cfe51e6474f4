// A model into another format or precision.
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/cli/cli.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/published.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string model, out, dtype = "bf16", packed, attention = "sparse";
  double shard = 5;
};

Json written_config(ModelConfig config, Precision to) {
  config.torch_dtype = to == Precision::f32 ? "float32" : "bfloat16";
  Json json = config_json(config);
  if (to == Precision::fp8)
    json["quantization_config"] = {{"activation_scheme", "dynamic"},
                                   {"fmt", "e4m3"},
                                   {"quant_method", "fp8"},
                                   {"scale_fmt", "ue8m0"},
                                   {"weight_block_size", {128, 128}}};
  return json;
}

// The weights in files of the folder; their bytes.
uint64_t write_model(const Options& o, const std::filesystem::path& folder, Transformer model) {
  const auto& config = model.config();
  if (!o.packed.empty()) {
    bool absorbed = config.has_indexer() && o.attention == "sparse";
    auto packed = pack_weights(config, std::move(model.weights()), type_of(o.dtype), absorbed, weight_format(o.packed));
    return save_packed(folder, config, packed);
  }
  auto to = precision(o.dtype);
  FULGUR_CHECK(config.has_latents() || to != Precision::fp8, "[convert] expected f32 or bf16 for a llama model, got fp8");
  write_file_atomic(folder / "config.json", written_config(config, to).dump(2) + "\n");
  uint64_t bytes = 0;
  for (const auto& [file, sum] :
       write_weights(folder, published(export_weights(config, model.weights()), to), int64_t(o.shard * 1e9)))
    bytes += sum.bytes;
  return bytes;
}

void convert(const Options& o, bool json) {
  if (!o.packed.empty() && o.dtype == "fp8") throw UsageError("[usage] --dtype: expected f32 or bf16 with --packed, got fp8");
  auto model_path = find_model(o.model);
  FULGUR_CHECK(!std::filesystem::exists(o.out), "[convert] ", o.out, ": expected a folder that is not there yet, got one");
  ModelFiles files(model_path);
  std::filesystem::path folder = o.out + ".new";
  make_empty_folder(folder);
  copy_tokenizer(files, model_path, folder);
  uint64_t bytes = write_model(o, folder, files.load(/*share_mtp=*/!o.packed.empty()));
  move_folder(folder, o.out);
  if (json) std::printf("%s\n", Json{{"out", o.out}, {"dtype", o.dtype}, {"packed", o.packed}, {"bytes", bytes}}.dump().c_str());
  else std::printf("%s: %sB of weights in %s\n", o.out.c_str(), human_count(double(bytes)).c_str(), o.dtype.c_str());
}

}  // namespace

void copy_tokenizer(const ModelFiles& files, const std::filesystem::path& model, const std::filesystem::path& folder) {
  // As they are, with what only others read in them.
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    if (std::filesystem::exists(model / name)) write_file_atomic(folder / name, read_file(model / name));
  if (!std::filesystem::exists(folder / "tokenizer.json"))
    write_file_atomic(folder / "tokenizer.json", tokenizer_json(files.vocabulary()).dump(1) + "\n");
  if (auto chat = files.chat_template(); !chat.empty()) write_file_atomic(folder / "chat_template.jinja", chat);
}

void add_convert(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command =
      app.add_subcommand("convert", "A model as a Hugging Face folder in another precision, or packed for this engine");
  command->add_option("--model", o->model, "Model folder, run directory or GGUF file")->required();
  command->add_option("--out", o->out, "Folder to write")->required();
  command->add_option("--dtype", o->dtype, "Precision of the weights; fp8 as DeepSeek publishes it")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16", "fp8"}));
  command
      ->add_option("--packed", o->packed,
                   "As this engine reads it, in one file that is mapped instead of loaded, with matrices stored so")
      ->check(CLI::IsMember(std::vector<std::string>(kWeightFormats.begin(), kWeightFormats.end())));
  command->add_option("--attention", o->attention, "With --packed: what the model will run with")
      ->capture_default_str()
      ->check(CLI::IsMember({"sparse", "dense"}));
  command->add_option("--shard-size", o->shard, "Files of so many GB at most")->capture_default_str()->check(CLI::PositiveNumber);
  command->footer(
      "Example:\n  fulgur convert --model SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2 --dtype bf16\n"
      "  fulgur convert --model runs/speedrun --out small --packed int8");
  command->callback([=, &common] { convert(*o, common.json); });
}

}  // namespace fulgur::cli
