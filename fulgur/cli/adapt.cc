// Sparse attention for somebody's dense model: indexers beside its attention, taught by it, and what they keep of it.
#include "fulgur/train/adapt.h"

#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/cli/cli.h"
#include "fulgur/eval/perplexity.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/published.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string model, out, index_keys = "tied", dtype = "bf16";
  std::vector<fs::path> data;
  int64_t index_n_heads = 0, index_topk = 0, held_out = 20;
  IndexerTeaching teaching;
};

ModelConfig adapted(ModelConfig config, const Options& o) {
  FULGUR_CHECK(!config.has_indexer(), "[adapt] expected a dense model, got one with an indexer");
  FULGUR_CHECK(config.model_type == "llama", "[adapt] expected a llama model, got ", config.model_type,
               "\n  hint: of deepseek_v3 set model_type deepseek_v32 and index_*, and use `fulgur train warmup`");
  FULGUR_CHECK(o.teaching.context <= config.max_position_embeddings, "[adapt] --context: expected at most the model's ",
               config.max_position_embeddings, " tokens, got ", o.teaching.context);
  config.index_keys = o.index_keys;
  config.index_n_heads = o.index_n_heads > 0 ? o.index_n_heads : config.num_attention_heads;
  config.index_head_dim = config.v_head_dim;
  config.index_topk = o.index_topk > 0 ? o.index_topk : std::max<int64_t>(1, o.teaching.context / 8);
  validate(config, "the adapted model");
  return config;
}

Transformer with_top_k(const Transformer& model, int64_t k) {
  auto config = model.config();
  config.index_topk = k;
  return {config, model.weights()};
}

// Attention kept and perplexity on held-out text, by number of keys.
Json measure(const Transformer& model, const TokenShards& held_out, const Tokenizer& tokenizer, const Options& o) {
  Batches batches(held_out, o.teaching.context, /*seed=*/0);
  int64_t sequences = std::min(o.held_out, batches.sequences_per_epoch());
  auto of = [&](const Transformer& m, EvalForm form) {
    return perplexity(m, held_out, tokenizer, form, o.teaching.context, sequences * o.teaching.context, at::kFloat).nll;
  };
  Json out = {
      {"context", o.teaching.context}, {"sequences", sequences}, {"dense", of(model, EvalForm::dense)}, {"k", Json::array()}};
  for (int64_t k : {o.teaching.context / 16, o.teaching.context / 8}) {
    AttentionKept kept;
    for (int64_t i = 0; i < sequences; ++i) {
      auto one = attention_kept(model, batches.get(i, 1).batch, k, 64, uint64_t(i));
      kept.indexer += one.indexer / double(sequences), kept.oracle += one.oracle / double(sequences);
      kept.window += one.window / double(sequences);
    }
    auto sparse = with_top_k(model, k);
    out["k"].push_back({{"k", k},
                        {"mass", {{"indexer", kept.indexer}, {"oracle", kept.oracle}, {"window", kept.window}}},
                        {"sparse", of(sparse, EvalForm::sparse)},
                        {"window", of(sparse, EvalForm::window)}});
  }
  return out;
}

void print(const char* when, const Json& table) {
  double dense = table["dense"];
  std::printf("%s: %lld held-out sequences of %lld tokens, perplexity dense %.3f\n", when, table["sequences"].get<long long>(),
              table["context"].get<long long>(), std::exp(dense));
  for (const auto& row : table["k"]) {
    auto more = [&](const char* form) { return 100 * (std::exp(row[form].get<double>() - dense) - 1); };
    std::printf("  k %5lld   attention kept %.3f (best %.3f, window %.3f)   perplexity sparse %+.2f %%, window %+.2f %%\n",
                row["k"].get<long long>(), row["mass"]["indexer"].get<double>(), row["mass"]["oracle"].get<double>(),
                row["mass"]["window"].get<double>(), more("sparse"), more("window"));
  }
}

void adapt(const Options& o, Common& common) {
  auto path = find_model(o.model);
  FULGUR_CHECK(!fs::exists(o.out), "[adapt] ", o.out, ": expected a folder that is not there yet, got one");
  ModelFiles files(path);
  auto config = adapted(files.config(), o);
  fs::path folder = o.out + ".new";
  make_empty_folder(folder);
  copy_tokenizer(files, path, folder);
  pack({.inputs = o.data,
        .tokenizer = folder / "tokenizer.json",
        .out = folder / "data",
        .holdout_every = 10,
        .ends = PackOptions::Ends{int32_t(config.bos_token_id), int32_t(config.eos_token_id)}},
       [](int64_t, int64_t) {});
  TokenShards text(folder / "data", "train"), held_out(folder / "data", "valid");
  Batches batches(text, o.teaching.context, o.teaching.seed);
  Tokenizer tokenizer(folder / "tokenizer.json");
  auto model = with_indexers(files.load(), config, o.teaching.seed);
  auto before = measure(model, held_out, tokenizer, o);
  print("before", before);
  Progress progress("teach", "tok", o.teaching.sequences * o.teaching.context);
  teach_indexers(model, batches, o.teaching, [&](int64_t done, double kl) {
    char detail[32];
    std::snprintf(detail, sizeof detail, "KL %.4f", kl);
    progress.update(done * o.teaching.context, detail);
    return !g_stop;
  });
  if (g_stop) {
    fs::remove_all(folder);
    common.exit_code = stop_code();
    return;
  }
  auto behind = measure(model, held_out, tokenizer, o);
  print("behind", behind);
  config.torch_dtype = o.dtype == "f32" ? "float32" : "bfloat16";
  write_file_atomic(folder / "config.json", config_json(config).dump(2) + "\n");
  write_weights(folder, published(export_weights(config, model.weights()), precision(o.dtype)), int64_t(5e9));
  write_file_atomic(folder / "adapt.json", Json{{"before", before}, {"behind", behind}}.dump(2) + "\n");
  fs::remove_all(folder / "data");
  move_folder(folder, o.out);
  if (common.json) std::printf("%s\n", Json{{"out", o.out}, {"before", before}, {"behind", behind}}.dump().c_str());
}

}  // namespace

void add_adapt(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("adapt", "Sparse attention for a dense model: indexers beside its attention, taught by it");
  command->add_option("--model", o->model, "Model folder or GGUF file, of the Llama family")->required();
  command->add_option("--data", o->data, "Files and folders of text; a tenth of the documents is held out")->required();
  command->add_option("--out", o->out, "Folder to write")->required();
  command->add_option("--index-keys", o->index_keys, "tied: the attention's own keys; own: keys of their own")
      ->capture_default_str()
      ->check(CLI::IsMember({"tied", "own"}));
  command->add_option("--index-n-heads", o->index_n_heads, "Heads of an indexer (default: as many as attention has)");
  command->add_option("--index-topk", o->index_topk, "Keys it chooses (default: an eighth of the context)");
  command->add_option("--context", o->teaching.context, "Tokens a sequence")->capture_default_str();
  command->add_option("--sequences", o->teaching.sequences, "Sequences to learn from")->capture_default_str();
  command->add_option("--passes", o->teaching.passes, "Steps of each indexer a sequence")->capture_default_str();
  command->add_option("--rows", o->teaching.rows, "Rows a step")->capture_default_str();
  command->add_option("--lr", o->teaching.lr, "Rate at the start; it falls linearly to 0")->capture_default_str();
  command->add_option("--seed", o->teaching.seed, "Of the rows, the order of the text and indexers of their own")
      ->capture_default_str();
  command->add_option("--held-out", o->held_out, "Sequences to measure on")->capture_default_str();
  command->add_option("--dtype", o->dtype, "Precision of the weights written")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  command->footer("Example:\n  fulgur adapt --model SmolLM2-135M-Instruct.Q4_1.gguf --data notes/ --out smollm2-sparse");
  command->callback([=, &common] { adapt(*o, common); });
}

}  // namespace fulgur::cli
