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
  std::string model, out, dtype = "bf16";
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

void convert(const Options& o, bool json) {
  auto to = precision(o.dtype);
  auto model_path = find_model(o.model);
  FULGUR_CHECK(!std::filesystem::exists(o.out), "[convert] ", o.out, ": expected a folder that is not there yet, got one");
  ModelFiles files(model_path);
  auto model = files.load(/*share_mtp=*/false);
  const auto& config = model.config();
  FULGUR_CHECK(config.has_latents() || to != Precision::fp8, "[convert] expected f32 or bf16 for a llama model, got fp8");
  std::filesystem::path folder = o.out + ".new";
  make_empty_folder(folder);
  write_file_atomic(folder / "config.json", written_config(config, to).dump(2) + "\n");
  auto tokenizer = model_path / "tokenizer.json";  // as it is, with what only others read in it
  write_file_atomic(folder / "tokenizer.json", std::filesystem::exists(tokenizer)
                                                   ? read_file(tokenizer)
                                                   : tokenizer_json(files.vocabulary()).dump(1) + "\n");
  uint64_t bytes = 0;
  for (const auto& [file, sum] :
       write_weights(folder, published(export_weights(config, model.weights()), to), int64_t(o.shard * 1e9)))
    bytes += sum.bytes;
  move_folder(folder, o.out);
  if (json) std::printf("%s\n", Json{{"out", o.out}, {"dtype", o.dtype}, {"bytes", bytes}}.dump().c_str());
  else std::printf("%s: %sB of weights in %s\n", o.out.c_str(), human_count(double(bytes)).c_str(), o.dtype.c_str());
}

}  // namespace

void add_convert(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("convert", "A model as a Hugging Face folder in another precision");
  command->add_option("--model", o->model, "Model folder, run directory or GGUF file")->required();
  command->add_option("--out", o->out, "Folder to write")->required();
  command->add_option("--dtype", o->dtype, "Precision of the weights; fp8 as DeepSeek publishes it")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16", "fp8"}));
  command->add_option("--shard-size", o->shard, "Files of so many GB at most")->capture_default_str()->check(CLI::PositiveNumber);
  command->footer("Example:\n  fulgur convert --model SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2 --dtype bf16");
  command->callback([=, &common] { convert(*o, common.json); });
}

}  // namespace fulgur::cli
