// A model's prefill and decoding at a depth of context: tokens/s, and the share of what this machine could do.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <cstdio>
#include <list>
#include <map>
#include <optional>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/model/cost.h"
#include "fulgur/model/rope_table.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/isa.h"
#include "fulgur/ops/log_prob/log_prob.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string shape = "ds32-353m", model, depth = "0,2K,8K,32K,128K", dtype = "bf16", weights = "plain", cache = "plain";
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

  const Way& way() const { return way_; }

  // `weight_bytes`: what a weight takes.
  StepCost cost(int64_t rows, double weight_bytes) const {
    const auto& layer = cache_.layers[0];
    auto of_key = [&](const at::Tensor& keys) {
      return keys.defined() ? double(keys.nbytes()) / double(int64_t(sequence_.pages.size()) * 64) : 0;
    };
    StoredBytes bytes{weight_bytes, of_key(layer.kv_SC) + of_key(layer.k_SHE) + of_key(layer.v_SHV), of_key(layer.index_PDK)};
    if (model_.config().tied_index() && way_.attention() == Attention::sparse)  // read where attention keeps them
      bytes.index_key = stored_bytes(model_.config(), way_.form, double(c10::elementSize(type_))).index_key;
    return step_cost(model_.config(), way_.form, depth_, rows, bytes);
  }

  // `rows` rows behind the depth, which are forgotten again; returns how long they took.
  double seconds(int64_t rows) {
    auto batch = rows_behind(rows);
    Replay all;
    if (way_.form == Form::dense_absorbed) all.selected_NK.assign(model_.config().num_hidden_layers, every_key(batch));
    ForwardOptions options{.attention = way_.attention(), .type = type_, .replay = &all};
    return time_once([&] {
      auto hidden = model_.forward(batch, options, &cache_);
      ops::logits(hidden.narrow(0, rows - 1, 1), model_.weights().lm_head);
    });
  }

  // The attention core alone, of all layers: the indexer's scores and selection, and attention to the keys in the cache.
  double core_seconds(int64_t rows) {
    const auto& c = model_.config();
    auto batch = rows_behind(rows);
    auto random = [&](int64_t heads, int64_t size) { return at::randn({rows, heads, size}).to(type_); };
    int64_t H = c.num_attention_heads, key = c.qk_nope_head_dim + c.qk_rope_head_dim;
    // Of chosen keys: beside latents absorbed, whose values are the latents; of groups the keys as they are.
    int64_t of_chosen = c.has_latents() ? c.kv_lora_rank + c.qk_rope_head_dim : key;
    int64_t values = c.has_latents() ? c.kv_lora_rank : c.v_head_dim;
    if (way_.form == Form::dense)
      return time_once([&, q = random(H, key)] {
        for (auto& layer : cache_.layers)
          ops::dense_mla(q, layer.k_SHE, layer.v_SHV, batch.visible_N2, softmax_scale(c), batch.pages_P);
      });
    auto q = random(H, of_chosen), index_q = random(c.index_n_heads, c.index_head_dim),
         index_w = at::rand({rows, c.index_n_heads});
    auto all = way_.form == Form::sparse ? at::Tensor() : every_key(batch);
    return time_once([&] {
      for (auto& layer : cache_.layers) {
        auto selected = all.defined() ? all
                                      : ops::indexer_top_k(index_q, layer.index_keys(c), index_w, batch.visible_N2, c.index_topk,
                                                           batch.pages_P);
        ops::sparse_mla(q, layer.kv_SC, selected, values, softmax_scale(c), batch.pages_P);
      }
    });
  }

 private:
  Batch rows_behind(int64_t rows) {
    std::vector<int32_t> tokens(rows);
    for (int64_t i = 0; i < rows; ++i) tokens[i] = int32_t((i * i * 31 + i * 7 + ++turn_ * 13) % model_.config().vocab_size);
    sequence_.length = depth_;
    return append({&sequence_}, {tokens});
  }
  void fill(Cache::Layer& layer) {
    const auto& config = model_.config();
    constexpr int64_t kBlock = 4096;  // keys at once
    for (int64_t first = 0, keys = pages_for(depth_) * 64; first < keys; first += kBlock) {
      int64_t count = std::min(kBlock, keys - first);
      auto slots = at::arange(first, first + count, at::kLong);
      auto random = [&](int64_t size) { return at::randn({count, size}).to(type_); };
      if (config.has_latents())
        ops::store_latents(layer.kv_SC, slots, random(config.kv_lora_rank), random(config.qk_rope_head_dim));
      else layer.kv_SC.narrow(0, first, count).normal_();
      if (!config.tied_index()) ops::store_index_keys(layer.index_PDK, slots, random(config.index_head_dim));
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
  const Json& core = r["core"];
  std::printf("%-8s %-8s %-15s %12.1f %9.1f %8.2f %8.0f %% %9.0f %% %10.2f %8.0f %%\n",
              r["depth_name"].get<std::string>().c_str(), r["what"].get<std::string>().c_str(),
              r["form"].get<std::string>().c_str(), rows / seconds, r["flops"].get<double>() / rows / 1e6,
              r["bytes"].get<double>() / rows / 1e6, 100 * r["share"].get<double>(), 100 * r["indexer_share"].get<double>(),
              core["seconds"].get<double>() / rows * 1e3, 100 * core["share"].get<double>());
  std::fflush(stdout);
}

std::string depth_name(int64_t depth) { return depth % 1024 == 0 && depth > 0 ? cat(depth / 1024, "K") : cat(depth); }

double weight_bytes(const Options& o) {
  if (o.weights == "int4") return 4.5 / 8;
  if (o.weights == "int8" || o.weights == "fp8") return 1 + 1.0 / 64;
  return double(c10::elementSize(type_of(o.dtype)));
}

// One repetition after another, each of the whole and of the core.
Json measure(Depth& at, const Options& o, int64_t depth, int64_t rows, Limits& limits) {
  auto cost = at.cost(rows, weight_bytes(o));
  std::vector<Sample> whole, core;
  at.seconds(rows), at.core_seconds(rows);
  auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(o.seconds);
  while (whole.size() < 3 || (std::chrono::steady_clock::now() < end && whole.size() < 100)) {
    whole.push_back(sample(limits, cost.flops, cost.bytes, [&] { return at.seconds(rows); }));
    core.push_back(sample(limits, cost.core_flops, cost.core_bytes, [&] { return at.core_seconds(rows); }));
  }
  const char *what = rows == 1 ? "decode" : "prefill", *form = at.way().name;
  auto label = cat(o.model.empty() ? o.shape : o.model, " at ", depth_name(depth));
  Json r = result_json(cat(what, " ", form), label, whole, cost.flops, cost.bytes);
  r["core"] = result_json(cat(what, " core ", form), label, core, cost.core_flops, cost.core_bytes);
  r["what"] = what, r["form"] = form, r["depth"] = depth, r["depth_name"] = depth_name(depth), r["rows"] = rows;
  r["tokens_per_second"] = double(rows) / r["seconds"].get<double>();
  r["indexer_share"] = cost.indexer_flops / cost.flops;
  r["limit_seconds"] = limits.best(cost.flops, cost.bytes);
  r["core"]["limit_seconds"] = limits.best(cost.core_flops, cost.core_bytes);
  print(r);
  return r;
}

// How many times the fastest dense form takes what the sparse one takes.
double gain(const std::vector<Json>& of_depth, const std::string& part, const char* seconds) {
  auto of = [&](const Json& r) { return (part.empty() ? r : r[part])[seconds].get<double>(); };
  double best = 1e30;
  for (size_t i = 1; i < of_depth.size(); ++i) best = std::min(best, of(of_depth[i]));
  return best / of(of_depth[0]);
}

// Beside the faster of the dense forms: as measured, and by this machine's limits.
void compare_forms(std::vector<Json>& of_depth) {
  Json& sparse = of_depth[0];
  for (std::string part : {"", "core"}) {
    auto& r = part.empty() ? sparse : sparse[part];
    r["gain"] = gain(of_depth, part, "seconds"), r["gain_of_limits"] = gain(of_depth, part, "limit_seconds");
  }
  const Json& core = sparse["core"];
  std::printf("%-8s %-8s %-15s %11.2fx  by the limits %.2fx; attention core %.2fx, by the limits %.2fx\n",
              sparse["depth_name"].get<std::string>().c_str(), sparse["what"].get<std::string>().c_str(), "sparse gains",
              sparse["gain"].get<double>(), sparse["gain_of_limits"].get<double>(), core["gain"].get<double>(),
              core["gain_of_limits"].get<double>());
}

void bench_model(const Options& o) {
  c10::InferenceMode inference;
  at::set_num_threads(threads());
  auto depths = depths_of(o.depth);
  std::optional<ModelFiles> files;
  if (!o.model.empty()) files.emplace(find_model(o.model));
  auto config = files ? files->config() : read_config(resource(cat("recipes/shapes/", o.shape, ".json")));
  FULGUR_CHECK(config.has_indexer(), "[bench] expected a model with an indexer, got ", config.model_type,
               "\n  hint: `fulgur adapt` gives a dense model one");
  for (int64_t depth : depths)
    FULGUR_CHECK(depth + o.chunk <= config.max_position_embeddings, "[bench] --depth: expected at most ",
                 config.max_position_embeddings - o.chunk, ", got ", depth);
  auto packed = [&](bool absorbed) {  // as an engine holds them
    auto type = type_of(o.dtype);
    auto weights = files ? std::move(files->load().weights()) : init_weights(config, 1);
    return Transformer(config, pack_weights(config, std::move(weights), type, absorbed, weight_format(o.weights)));
  };
  std::map<Attention, Transformer> models;
  models.emplace(Attention::sparse, packed(true));
  if (o.dense) models.emplace(Attention::dense, packed(false));
  Limits limits;
  std::printf("peaks: %.0f GFLOP/s (best large GEMM), %.1f GB/s (reading 2 GB), %d threads, %s\n", limits.flops() / 1e9,
              limits.bandwidth() / 1e9, threads(), isa_name(isa()));
  std::printf("%-8s %-8s %-15s %12s %9s %8s %10s %11s %10s %10s\n", "depth", "", "attention", "tokens/s", "MFLOP", "MB",
              "of limit", "indexer's", "core ms", "of limit");
  Json results = Json::array();
  for (int64_t depth : depths) {
    std::list<Depth> ways;
    auto add = [&](const Way& way, CacheFormat format) {
      ways.emplace_back(models.at(way.attention()), way, type_of(o.dtype), format, depth, o.chunk);
    };
    add({"sparse", Form::sparse}, cache_format(o.cache));
    if (o.dense) add({"dense", Form::dense}, {});
    if (o.dense && config.has_latents()) add({"dense absorbed", Form::dense_absorbed}, {});
    for (int64_t rows : {o.chunk, int64_t(1)}) {
      std::vector<Json> of_depth;
      for (auto& way : ways)
        // Absorbed, a pair of a long prompt costs several times what it costs expanded; a token alone reads less.
        if (way.way().form != Form::dense_absorbed || rows == 1) of_depth.push_back(measure(way, o, depth, rows, limits));
      if (o.dense) compare_forms(of_depth);
      for (auto& r : of_depth) results.push_back(r);
    }
  }
  finish_bench(limits, results, Json::array());
}

}  // namespace

void add_bench_model(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("model", "Prefill and decoding of a model at a depth of context");
  auto* shape = command->add_option("--shape", o->shape, "Random weights of recipes/shapes/NAME.json")
                    ->capture_default_str()
                    ->check(CLI::IsMember({"ds32-353m", "v32-layer"}));
  command->add_option("--model", o->model, "A model with an indexer instead: a folder or run directory")->excludes(shape);
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
