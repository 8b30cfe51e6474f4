#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/cli/cli.h"
#include "fulgur/eval/dump.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string model, config, weights, input, output, dump = "forward", attention = "sparse", dtype = "f32", replay;
  std::string cache = "plain", weights_format = "plain";
  int64_t chunk = 0, steps = 40;
  bool hadamard = false, simulate_fp8 = false;
};

Transformer read_model(const Options& o) {
  if (!o.model.empty()) return load_model(find_model(o.model), /*share_mtp=*/false);
  if (o.config.empty() || o.weights.empty()) throw UsageError("[usage] expected --model, or --config and --weights");
  auto config = read_config(o.config);
  return Transformer(config, import_weights(config, read_weights(o.weights), /*share_mtp=*/false));
}

Transformer open_model(const Options& o) {
  bool inference = o.dump == "logits" || o.dump == "greedy";
  auto format = weight_format(o.weights_format);
  if (!inference && (o.cache != "plain" || format != WeightFormat::plain))
    throw UsageError("[usage] --cache and --weights-format: expected --dump logits or greedy, got --dump " + o.dump);
  if (format == WeightFormat::plain) return read_model(o);
  auto model = read_model(o);
  return {model.config(),
          pack_weights(model.config(), std::move(model.weights()), type_of(o.dtype), o.attention == "sparse", format)};
}

const at::Tensor& input(const Tensors& inputs, const std::string& file, const std::string& name) {
  FULGUR_CHECK(inputs.contains(name), "[forward] ", file, ": expected a tensor ", name, ", got none");
  const auto& tensor = inputs.at(name);
  FULGUR_CHECK(at::isIntegralType(tensor.scalar_type(), false), "[forward] ", file, ": ", name, ": expected whole numbers, got ",
               tensor.scalar_type());
  return tensor;
}

void forward(const Options& o, bool json) {
  auto model = open_model(o);
  auto inputs = read_safetensors(o.input);
  Tensors replay;
  if (!o.replay.empty()) replay = read_safetensors(o.replay);
  DumpOptions options{.attention = o.attention == "dense" ? Attention::dense : Attention::sparse,
                      .type = type_of(o.dtype),
                      .cache = cache_format(o.cache),
                      .chunk = o.chunk,
                      .hadamard = o.hadamard,
                      .simulate_fp8 = o.simulate_fp8,
                      .replay = o.replay.empty() ? nullptr : &replay};
  Tensors out;
  if (o.dump == "greedy") out = dump_greedy(model, input(inputs, o.input, "prompt"), o.steps, options);
  else if (o.dump == "forward") out = dump_forward(model, input(inputs, o.input, "tokens"), options);
  else if (o.dump == "logits") out = dump_logits(model, input(inputs, o.input, "tokens"), options);
  else if (o.dump == "grad") out = dump_grad(model, input(inputs, o.input, "tokens"), options);
  else out = dump_kl(model, input(inputs, o.input, "tokens"), options);
  write_safetensors(o.output, out);
  if (json) std::printf("%s\n", Json{{"output", o.output}, {"tensors", out.size()}}.dump().c_str());
  else std::printf("%s: %zu tensors\n", o.output.c_str(), out.size());
}

}  // namespace

void add_forward(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("forward", "Every tensor of a forward pass, to compare with other software");
  command->add_option("--model", o->model, "Model folder or run directory");
  command->add_option("--config", o->config, "config.json, with --weights");
  command->add_option("--weights", o->weights, "A .safetensors file or folder, with --config");
  command->add_option("--input", o->input, "Safetensors file with int32 tokens [B, T]; for greedy: prompt")->required();
  command->add_option("--output", o->output, "Safetensors file to write")->required();
  command->add_option("--dump", o->dump, "What to write")
      ->capture_default_str()
      ->check(CLI::IsMember({"forward", "grad", "kl", "greedy", "logits"}));
  command->add_option("--attention", o->attention, "Form of attention")
      ->capture_default_str()
      ->check(CLI::IsMember({"sparse", "dense"}));
  command->add_option("--dtype", o->dtype, "Activations")->capture_default_str()->check(CLI::IsMember({"f32", "bf16"}));
  add_formats(*command, o->weights_format, o->cache);
  command->add_option("--chunk", o->chunk, "With --dump logits: tokens a call through the cache (default: one pass)")
      ->check(CLI::PositiveNumber);
  command->add_option("--steps", o->steps, "With --dump greedy: tokens to decode")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--replay", o->replay, "Force layer.i.selected and layer.i.experts of this file");
  command->add_flag("--hadamard", o->hadamard, "Rotate the indexer's queries and keys");
  command->add_flag("--simulate-fp8", o->simulate_fp8, "Quantise and dequantise indexer vectors and latents");
  command->footer(
      "Example:\n  fulgur forward --model runs/speedrun --input in.safetensors --output out.safetensors --dump logits");
  command->callback([=, &common] { forward(*o, common.json); });
}

}  // namespace fulgur::cli
