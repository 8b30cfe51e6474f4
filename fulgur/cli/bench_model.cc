// A model's prefill and decoding at a depth of context: tokens/s, and the share of what this machine could do.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <cstdio>
#include <map>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/model/cost.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/isa.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string shape = "ds32-353m", depth = "0,2K,8K,32K,128K", dtype = "bf16", weights = "plain", cache = "plain";
  int64_t chunk = 256;
  double seconds = 2;
  bool dense = true;
};

std::vector<int64_t> depths_of(const std::string& list) {
  std::vector<int64_t> depths;
  for (size_t at = 0; at <= list.size();) {
    size_t end = std::min(list.find(',', at), list.size());
    auto word = list.substr(at, end - at);
    bool kilo = !word.empty() && (word.back() == 'K' || word.back() == 'k');
    auto digits = word.substr(0, word.size() - kilo);
    if (digits.empty() || digits.size() > 9 || digits.find_first_not_of("0123456789") != std::string::npos)
      throw UsageError(cat("[usage] --depth: expected tokens such as 0,2K,128K, got ", list));
    depths.push_back(std::stoll(digits) * (kilo ? 1024 : 1));
    at = end + 1;
  }
  return depths;
}

// How the model attends: the sparse form, or one of the dense ones, which differ in what they cost.
struct Way {
  const char* name;
  Form form;
  Attention attention() const { return form == Form::dense ? Attention::dense : Attention::sparse; }
};

// A cache as it would be behind `depth` tokens: latents and indexer keys are normed, so random ones have the right size.
class Depth {
 public:
  Depth(const Transformer& model, const Way& way, at::ScalarType type, CacheFormat format, int64_t depth, int64_t rows)
      : model_(model),
        way_(way),
        type_(type),
        depth_(depth),
        cache_(model.config(), way.attention(), type, pages_for(depth + rows), {.format = format}),
        sequence_(cached_sequences(1, depth + rows)[0]) {
    for (auto& layer : cache_.layers) {
      if (way.attention() == Attention::sparse) fill(layer);
      else layer.k_SHE.normal_(), layer.v_SHV.normal_();
    }
  }

  // What a value takes.
  StoredBytes bytes(double weight) const {
    const auto& layer = cache_.layers[0];
    auto of_key = [&](const at::Tensor& keys) {
      return keys.defined() ? double(keys.nbytes()) / double(int64_t(sequence_.pages.size()) * 64) : 0;
    };
    return {weight, of_key(layer.kv_SC) + of_key(layer.k_SHE) + of_key(layer.v_SHV), of_key(layer.index_PDK)};
  }

  // `rows` rows behind the depth, which are forgotten again; returns how long they took.
  double seconds(int64_t rows) {
    std::vector<int32_t> tokens(rows);
    for (int64_t i = 0; i < rows; ++i) tokens[i] = int32_t((i * i * 31 + i * 7 + ++turn_ * 13) % model_.config().vocab_size);
    sequence_.length = depth_;
    auto batch = append({&sequence_}, {tokens});
    Replay all;
    if (way_.form == Form::dense_absorbed) all.selected_NK.assign(model_.config().num_hidden_layers, every_key(batch));
    ForwardOptions options{.attention = way_.attention(), .type = type_, .replay = &all};
    return time_once([&] {
      auto hidden = model_.forward(batch, options, &cache_);
      ops::logits(hidden.narrow(0, rows - 1, 1), model_.weights().lm_head);
    });
  }

 private:
  void fill(Cache::Layer& layer) {
    const auto& config = model_.config();
    constexpr int64_t kBlock = 4096;  // keys at once
    for (int64_t first = 0, keys = pages_for(depth_) * 64; first < keys; first += kBlock) {
      int64_t count = std::min(kBlock, keys - first);
      auto slots = at::arange(first, first + count, at::kLong);
      auto random = [&](int64_t size) { return at::randn({count, size}).to(type_); };
      ops::store_latents(layer.kv_SC, slots, random(config.kv_lora_rank), random(config.qk_rope_head_dim));
      ops::store_index_keys(layer.index_PDK, slots, random(config.index_head_dim));
    }
  }
  static at::Tensor every_key(const Batch& batch) {
    auto end_N1 = batch.visible_N2.narrow(1, 1, 1);
    auto key = at::arange(end_N1.max().item<int>(), at::kInt).unsqueeze(0);
    return at::where(key < end_N1, key, -1).to(at::kInt).contiguous();
  }

  const Transformer& model_;
  Way way_;
  at::ScalarType type_;
  int64_t depth_, turn_ = 0;
  Cache cache_;
  CachedSequence sequence_;
};

void print(const Json& r) {
  double seconds = r["seconds"], rows = r["rows"];
  std::printf("%-8s %-8s %-15s %12.1f %9.1f %8.2f %8.0f %% %9.0f %%\n", r["depth_name"].get<std::string>().c_str(),
              r["what"].get<std::string>().c_str(), r["form"].get<std::string>().c_str(), rows / seconds,
              r["flops"].get<double>() / rows / 1e6, r["bytes"].get<double>() / rows / 1e6, 100 * r["share"].get<double>(),
              100 * r["indexer_share"].get<double>());
  std::fflush(stdout);
}

std::string depth_name(int64_t depth) { return depth % 1024 == 0 && depth > 0 ? cat(depth / 1024, "K") : cat(depth); }

double weight_bytes(const Options& o) {
  if (o.weights == "int4") return 4.5 / 8;
  if (o.weights == "int8" || o.weights == "fp8") return 1 + 1.0 / 64;
  return double(c10::elementSize(type_of(o.dtype)));
}

Json measure(const Transformer& model, const Way& way, const Options& o, int64_t depth, int64_t rows, Limits& limits) {
  auto type = type_of(o.dtype);
  auto format = way.form == Form::sparse ? cache_format(o.cache) : CacheFormat{};
  Depth at(model, way, type, format, depth, rows);
  auto cost = step_cost(model.config(), way.form, depth, rows, at.bytes(weight_bytes(o)));
  std::vector<Sample> samples;
  at.seconds(rows);
  auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(o.seconds);
  while (samples.size() < 3 || (std::chrono::steady_clock::now() < end && samples.size() < 100))
    samples.push_back(sample(limits, cost.flops, cost.bytes, [&] { return at.seconds(rows); }));
  const char* what = rows == 1 ? "decode" : "prefill";
  Json r = result_json(cat(what, " ", way.name), cat(o.shape, " at ", depth_name(depth)), samples, cost.flops, cost.bytes);
  r["what"] = what, r["form"] = way.name, r["depth"] = depth, r["depth_name"] = depth_name(depth), r["rows"] = rows;
  r["tokens_per_second"] = double(rows) / r["seconds"].get<double>();
  r["indexer_share"] = cost.indexer_flops / cost.flops;
  r["limit_seconds"] = limits.best(cost.flops, cost.bytes);
  print(r);
  return r;
}

// The faster of the dense forms beside the sparse one: by this machine's limits, and as measured.
void compare_forms(const std::vector<Json>& of_depth) {
  const Json& sparse = of_depth[0];
  const Json* best = &of_depth[1];
  double limit = 1e30;
  for (size_t i = 1; i < of_depth.size(); ++i) {
    if (of_depth[i]["seconds"] < (*best)["seconds"]) best = &of_depth[i];
    limit = std::min(limit, of_depth[i]["limit_seconds"].get<double>());
  }
  std::printf("%-8s %-8s %-15s %11.2fx  by the limits %.2fx\n", sparse["depth_name"].get<std::string>().c_str(),
              sparse["what"].get<std::string>().c_str(), "sparse gains",
              (*best)["seconds"].get<double>() / sparse["seconds"].get<double>(), limit / sparse["limit_seconds"].get<double>());
}

void bench_model(const Options& o) {
  c10::AutoGradMode no_grad(false);
  at::set_num_threads(threads());
  auto depths = depths_of(o.depth);
  auto config = read_config(resource(cat("recipes/shapes/", o.shape, ".json")));
  for (int64_t depth : depths)
    FULGUR_CHECK(depth + o.chunk <= config.max_position_embeddings, "[bench] --depth: expected at most ",
                 config.max_position_embeddings - o.chunk, ", got ", depth);
  auto packed = [&, weights = init_weights(config, 1)](bool absorbed) {  // as an engine holds them
    auto type = type_of(o.dtype);
    return Transformer(config, pack_weights(config, weights, type, absorbed, weight_format(o.weights)));
  };
  std::map<Attention, Transformer> models;
  models.emplace(Attention::sparse, packed(true));
  if (o.dense) models.emplace(Attention::dense, packed(false));
  Limits limits;
  std::printf("peaks: %.0f GFLOP/s (best large GEMM), %.1f GB/s (reading 2 GB), %d threads, %s\n", limits.flops() / 1e9,
              limits.bandwidth() / 1e9, threads(), isa_name(isa()));
  std::printf("%-8s %-8s %-15s %12s %9s %8s %10s %11s\n", "depth", "", "attention", "tokens/s", "MFLOP", "MB", "of limit",
              "indexer's");
  Json results = Json::array();
  for (int64_t depth : depths)
    for (int64_t rows : {o.chunk, int64_t(1)}) {
      std::vector<Way> ways{{"sparse", Form::sparse}};
      if (o.dense) ways.push_back({"dense", Form::dense});
      // Absorbed, a pair of a long prompt costs several times what it costs expanded; a token alone reads less.
      if (o.dense && rows == 1) ways.push_back({"dense absorbed", Form::dense_absorbed});
      std::vector<Json> of_depth;
      for (const auto& way : ways) of_depth.push_back(measure(models.at(way.attention()), way, o, depth, rows, limits));
      if (o.dense) compare_forms(of_depth);
      for (auto& r : of_depth) results.push_back(r);
    }
  finish_bench(limits, results, Json::array());
}

}  // namespace

void add_bench_model(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("model", "Prefill and decoding of a model of random weights, at a depth of context");
  command->add_option("--shape", o->shape, "Model: recipes/shapes/NAME.json")
      ->capture_default_str()
      ->check(CLI::IsMember({"ds32-353m", "v32-layer"}));
  command->add_option("--depth", o->depth, "Tokens in the cache")->capture_default_str();
  command->add_option("--chunk", o->chunk, "Rows of a prefill step")->capture_default_str()->check(CLI::PositiveNumber);
  command->add_option("--dtype", o->dtype, "Activations, and weights and cache that are plain")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  add_formats(*command, o->weights, o->cache);
  command->add_option("--seconds", o->seconds, "Time for each figure")->capture_default_str()->check(CLI::PositiveNumber);
  command->add_flag("!--no-dense", o->dense, "Leave out the dense forms, whose caches are large");
  command->footer("Example:\n  fulgur bench model --shape ds32-353m --depth 0,8K,128K --threads 2");
  command->callback([=] { bench_model(*o); });
}

}  // namespace fulgur::cli
