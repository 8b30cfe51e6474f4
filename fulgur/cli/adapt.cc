// Sparse attention for somebody's dense model: indexers beside its attention, taught by it, the model trained on with them, and
// what that keeps. OUT.work holds what is on the way: a run that was stopped goes on.
#include "fulgur/train/adapt.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/system_memory.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/eval/adapt_report.h"
#include "fulgur/eval/kept.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/published.h"
#include "fulgur/train/adapt_plan.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/resume.h"
#include "fulgur/train/trainer.h"

namespace fulgur::cli {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string model, out, index_keys, dtype = "bf16", sparse_tokens = "0";
  std::vector<fs::path> data;
  int64_t index_n_heads = 0, index_head_dim = 0, index_topk = 0, documents = 7, look_every = 10;
  std::vector<int64_t> contexts;
  double sparse_lr = 3e-5, sparse_indexer_lr = 5e-4;
  bool twin = false, plan = false, baselines = true;
  IndexerTeaching teaching;
};

// What decides the result, in run.json.
Json options_json(const Options& o) {
  Json data = Json::array();
  for (const auto& path : o.data) data.push_back(fs::weakly_canonical(path).string());
  const auto& t = o.teaching;
  return {{"model", o.model},
          {"data", data},
          {"index_keys", o.index_keys},
          {"index_n_heads", o.index_n_heads},
          {"index_head_dim", o.index_head_dim},
          {"index_topk", o.index_topk},
          {"context", t.context},
          {"sequences", t.sequences},
          {"batch", t.batch},
          {"passes", t.passes},
          {"rows", t.rows},
          {"lr", t.lr},
          {"seed", t.seed},
          {"look_every", o.look_every},
          {"sparse_tokens", o.sparse_tokens},
          {"sparse_lr", o.sparse_lr},
          {"sparse_indexer_lr", o.sparse_indexer_lr}};
}

ModelConfig adapted(ModelConfig config, const Options& o) {
  FULGUR_CHECK(o.teaching.context <= config.max_position_embeddings, "[adapt] --context: expected at most the model's ",
               config.max_position_embeddings, " tokens, got ", o.teaching.context);
  for (int64_t context : o.contexts)
    FULGUR_CHECK(context <= config.max_position_embeddings, "[adapt] --measure: expected at most the model's ",
                 config.max_position_embeddings, " tokens, got ", context);
  bool llama = config.model_type == "llama";
  if (!llama) config.model_type = "deepseek_v32";
  config.index_keys = !o.index_keys.empty() ? o.index_keys : llama ? "tied" : "own";
  if (o.index_n_heads > 0) config.index_n_heads = o.index_n_heads;
  else if (llama || config.index_n_heads == 0) config.index_n_heads = config.num_attention_heads;
  if (config.index_keys == "tied") config.index_head_dim = config.tied_key_size();
  else if (o.index_head_dim > 0) config.index_head_dim = o.index_head_dim;
  else if (llama || config.index_head_dim == 0) config.index_head_dim = llama ? config.v_head_dim : 2 * config.qk_rope_head_dim;
  config.index_topk = o.index_topk > 0 ? o.index_topk : std::max<int64_t>(1, o.teaching.context / 8);
  validate(config, "the adapted model");
  return config;
}

// The last part of a path: what its documents are called.
std::string kind_of(const fs::path& path) { return (path.has_filename() ? path : path.parent_path()).filename().string(); }

class Adaptation {
 public:
  Adaptation(const Options& options, ProcessGroup& group)
      : o_(options),
        group_(group),
        path_(find_model(o_.model)),
        work_(o_.out + ".work"),
        files_(path_),
        config_(adapted(files_.config(), o_)) {}
  void print_plan() const;
  bool run();  // false: stopped
  const Json& record() const { return record_; }

 private:
  bool done();
  void open();
  void check_options(const fs::path& path) const;
  void save() { write_file_atomic(work_ / "run.json", record_.dump(2) + "\n"); }
  void pack();
  bool teach();
  void look(IndexerTeacher& teacher, Transformer& model, const std::vector<HeldOut>& some, double kl);
  bool gaining() const;
  void measure();
  bool train(const std::string& name);
  void measure_trained();
  void package();
  std::vector<HeldOut> documents(int64_t context, int64_t a_kind) const;
  StageConfig stage() const;
  fs::path taught() const { return work_ / "taught"; }
  bool trains() const { return parse_count(o_.sparse_tokens, "--sparse-tokens") > 0; }

  const Options& o_;
  ProcessGroup& group_;
  fs::path path_, work_;
  ModelFiles files_;
  ModelConfig config_;
  Json record_ = Json::object();  // the leader's
};

StageConfig Adaptation::stage() const {
  StageConfig s;
  s.kind = StageKind::sparse, s.context = o_.teaching.context, s.seed = o_.teaching.seed;
  s.tokens = int64_t(parse_count(o_.sparse_tokens, "--sparse-tokens"));
  s.micro_tokens = s.context, s.batch_tokens = s.context * o_.teaching.batch;
  s.lr = o_.sparse_lr, s.indexer_lr = o_.sparse_indexer_lr, s.schedule = "linear", s.warmup_steps = 2;
  s.checkpoint_every = 25, s.keep_last = 1, s.keep_best = 0, s.valid_sequences = 0, s.probe_every = 0;
  return s;
}

void Adaptation::print_plan() const {
  auto plan = plan_adaptation(config_, o_.teaching, trains() ? std::optional(stage()) : std::nullopt);
  std::fprintf(stderr, "%s", plan.text().c_str());
  if (plan.highest() > available_memory())
    std::fprintf(stderr, "  warning: more than the %sB this process may have; --context and --batch make it less\n",
                 human_count(double(available_memory())).c_str());
}

void Adaptation::check_options(const fs::path& path) const {
  Json then = record_.value("options", Json::object());
  const Json now = options_json(o_);
  for (const auto& [key, value] : now.items())
    FULGUR_CHECK(then.value(key, Json()) == value, "[adapt] ", path.string(), ": ", key, ": expected ",
                 then.value(key, Json()).dump(), " as this run was begun with, got ", value.dump(),
                 "\n  hint: the same flags go on; or give another --out");
}

// Whether the model is there already: a run that was killed when all was done, or the same command once more.
bool Adaptation::done() {
  if (!fs::exists(o_.out)) return false;
  auto path = fs::path(o_.out) / "adapt.json";
  FULGUR_CHECK(fs::exists(path), "[adapt] ", o_.out,
               ": expected a folder that is not there yet, or one of this command's, got another");
  record_ = read_json(path);
  check_options(path);
  for (int64_t context : o_.contexts)
    FULGUR_CHECK(record_["kept"].contains(std::to_string(context)), "[adapt] ", path.string(), ": expected documents of ",
                 context, " tokens, got others\n  hint: give another --out to measure them");
  fs::remove_all(work_);
  return true;
}

void Adaptation::open() {
  auto path = work_ / "run.json";
  if (fs::exists(path)) {
    record_ = read_json(path);
    return check_options(path);
  }
  fs::create_directories(work_);
  record_ = {{"options", options_json(o_)}, {"machine", machine_json()}};
  save();
}

// Each kind of text in a folder of its own, whose documents can be told apart; and shards of all of them together.
void Adaptation::pack() {
  auto data = work_ / "data";
  if (record_.contains("packed")) return;
  fs::remove_all(data), fs::remove_all(work_ / "kinds");
  fs::create_directories(data);
  copy_tokenizer(files_, path_, data);
  Json packed = Json::array();
  for (size_t i = 0; i < o_.data.size(); ++i) {
    auto folder = work_ / "kinds" / std::to_string(i);
    std::fprintf(stderr, "pack      %s\n", o_.data[i].string().c_str());
    auto summary = fulgur::pack({.inputs = {o_.data[i]},
                                 .tokenizer = data / "tokenizer.json",
                                 .out = folder,
                                 .holdout_every = 5,
                                 .ends = PackOptions::Ends{int32_t(config_.bos_token_id), int32_t(config_.eos_token_id)}},
                                [](int64_t, int64_t) {});
    packed.push_back(
        {{"kind", kind_of(o_.data[i])}, {"train_tokens", summary.train.tokens}, {"valid_tokens", summary.valid.tokens}});
    for (const auto& entry : fs::directory_iterator(folder)) {
      auto name = entry.path().filename().string();
      if (auto dash = name.find('-'); entry.path().extension() == ".bin")
        fs::create_hard_link(entry.path(), data / cat(name.substr(0, dash + 1), i, "-", name.substr(dash + 1)));
    }
  }
  int64_t have = Batches(TokenShards(data, "train"), o_.teaching.context, 1).sequences_per_epoch();
  FULGUR_CHECK(have >= o_.teaching.sequences, "[adapt] --data: expected ", o_.teaching.sequences, " sequences of ",
               o_.teaching.context, " tokens, got ", have, "\n  hint: more text, --sequences ", have, ", or a shorter --context");
  for (int64_t context : o_.contexts) documents(context, 1);
  record_["packed"] = packed;
  save();
}

std::vector<HeldOut> Adaptation::documents(int64_t context, int64_t a_kind) const {
  std::vector<HeldOut> out;
  for (size_t i = 0; i < o_.data.size(); ++i) {
    TokenShards shards(work_ / "kinds" / std::to_string(i), "valid");
    auto of_kind = held_out_documents(shards, kind_of(o_.data[i]), context, a_kind);
    int64_t longest = 0;
    for (int64_t d = 0; d < shards.documents(); ++d) longest = std::max(longest, shards.length(d));
    FULGUR_CHECK(!of_kind.empty(), "[adapt] --data ", o_.data[i].string(), ": expected held-out documents of ", context,
                 " tokens or more, got none: the longest has ", longest, "\n  hint: longer documents, or a shorter --context");
    for (auto& document : of_kind) out.push_back(std::move(document));
  }
  return out;
}

void Adaptation::look(IndexerTeacher& teacher, Transformer& model, const std::vector<HeldOut>& some, double kl) {
  double mass = 0, more = 0, n = double(some.size());
  for (const auto& document : some) {
    auto kept = measure_attention(model, document, config_.index_topk);
    mass += kept.mass / n;
    more += 100 * std::expm1(document_nll(model, document, KeptForm::taught, config_.index_topk) - kept.nll) / n;
  }
  auto& looks = record_["looks"];
  looks.push_back({{"step", teacher.done()}, {"kl", kl}, {"mass", mass}, {"perplexity", more}});
  std::fprintf(stderr, "\n  behind %lld steps: %lld keys of %lld keep %.4f of the attention, perplexity %+.2f %%\n",
               static_cast<long long>(teacher.done()), static_cast<long long>(config_.index_topk),
               static_cast<long long>(o_.teaching.context), mass, more);
}

// Whether attention or perplexity have moved since two looks ago.
bool Adaptation::gaining() const {
  auto looks = record_.value("looks", Json::array());
  if (looks.size() < 3) return true;
  auto gained = [&](const char* what) { return looks.back()[what].get<double>() - looks[looks.size() - 3][what].get<double>(); };
  return gained("mass") > 5e-4 || gained("perplexity") < -0.05;
}

bool Adaptation::teach() {
  if (fs::exists(taught() / "config.json")) return true;
  TokenShards shards(work_ / "data", "train");
  Batches text(shards, o_.teaching.context, o_.teaching.seed);
  auto model = with_indexers(files_.load(), config_, o_.teaching.seed);
  IndexerTeacher teacher(model, o_.teaching, group_);
  auto start = find_start(work_, "teach", path_, group_);
  if (start.resumed)
    teacher.load_state(read_safetensors(start.folder / "indexers.safetensors"), read_checkpoint(start.folder).step);
  std::vector<HeldOut> some;
  std::optional<Progress> progress;
  int64_t a_step = o_.teaching.batch * o_.teaching.context;
  if (group_.leads()) {
    some = documents(o_.teaching.context, 1);
    progress.emplace("teach", "tok", teacher.steps() * a_step, teacher.done() * a_step);
    auto& looks = record_["looks"];
    while (!looks.empty() && looks.back()["step"].get<int64_t>() > teacher.done()) looks.erase(looks.size() - 1);
  }
  auto going = [&] { return group_.from_leader(gaining() ? "go on" : "enough") == "go on"; };
  while (teacher.done() < teacher.steps() && going()) {
    double kl = teacher.step(text);
    if (group_.leads()) {
      char detail[32];
      std::snprintf(detail, sizeof detail, "KL %.4f", kl);
      progress->update(teacher.done() * a_step, detail);
    }
    bool stop = stop_wanted(g_stop, group_), due = teacher.done() == teacher.steps() || teacher.done() % o_.look_every == 0;
    if (!stop && !due) continue;
    if (group_.leads()) {
      if (due) look(teacher, model, some, kl);  // at a stop too: what follows depends on it
      save();
      CheckpointWriter writer(checkpoint_folder(work_, "teach", teacher.done()));
      writer.add("indexers.safetensors", write_safetensors(writer.folder() / "indexers.safetensors", teacher.state()));
      writer.commit({.stage = "teach", .step = teacher.done()});
      prune_checkpoints(work_, "teach", 1, 0);
    }
    if (stop) return false;
  }
  if (group_.leads())
    save_checkpoint(taught(), model, nullptr, work_ / "data/tokenizer.json", {.stage = "teach", .step = teacher.done()});
  group_.barrier();
  return true;
}

// By length; the documents already measured of a run that was stopped are not measured again.
void Adaptation::measure() {
  std::optional<Transformer> model, fresh;
  for (int64_t context : o_.contexts) {
    auto& kept = record_["kept"][std::to_string(context)];
    auto all = documents(context, o_.documents);
    if (kept.size() >= all.size()) continue;
    if (!model) model = load_model(taught()), fresh = with_indexers(files_.load(), config_, o_.teaching.seed);
    Progress progress("measure", "document", int64_t(all.size()), int64_t(kept.size()));
    for (size_t i = kept.size(); i < all.size() && !g_stop; ++i) {
      kept.push_back(measure_kept(*model, *fresh, all[i], {context / 16, context / 8}, o_.baselines));
      save();
      progress.update(int64_t(i) + 1);
    }
  }
}

// sparse: the model with its indexers, on chosen keys. twin: the dense model on the same tokens, which shows what the text did.
bool Adaptation::train(const std::string& name) {
  auto config = stage();
  if (name == "twin") config.kind = StageKind::pretrain;
  auto result = train_stage(
      config, {.run = work_ / name, .data = work_ / "data", .model = name == "twin" ? path_ : taught(), .stop = &g_stop}, group_);
  return result.finished;
}

void Adaptation::measure_trained() {
  auto sparse = load_model(find_model(work_ / "sparse", "sparse"));
  std::optional<Transformer> twin;
  if (o_.twin) twin = load_model(find_model(work_ / "twin", "pretrain"));
  auto& trained = record_["trained"];
  auto all = documents(o_.teaching.context, o_.documents);
  Progress progress("measure", "document", int64_t(all.size()), int64_t(trained.size()));
  for (size_t i = trained.size(); i < all.size() && !g_stop; ++i) {
    Json row = {{"kind", all[i].kind}, {"keys", Json::array()}};
    for (int64_t k : {o_.teaching.context / 16, o_.teaching.context / 8})
      row["keys"].push_back({{"k", k}, {"nll", document_nll(sparse, all[i], KeptForm::taught, k)}});
    if (twin) row["twin"] = document_nll(*twin, all[i], KeptForm::dense, config_.index_topk);
    trained.push_back(row);
    save();
    progress.update(int64_t(i) + 1);
  }
}

void Adaptation::package() {
  auto model = load_model(trains() ? find_model(work_ / "sparse", "sparse") : taught());
  fs::path folder = o_.out + ".new";
  make_empty_folder(folder);
  copy_tokenizer(files_, path_, folder);
  auto config = config_;
  config.torch_dtype = o_.dtype == "f32" ? "float32" : "bfloat16";
  write_file_atomic(folder / "config.json", config_json(config).dump(2) + "\n");
  write_weights(folder, published(export_weights(config, model.weights()), precision(o_.dtype)), int64_t(5e9));
  write_file_atomic(folder / "adapt.json", record_.dump(2) + "\n");
  write_file_atomic(folder / "README.md", model_card(config, record_));
  move_folder(folder, o_.out);
  fs::remove_all(work_);
}

bool Adaptation::run() {
  bool there = group_.leads() && done();
  if (group_.from_leader(there ? "there" : "to do") == "there") return true;
  if (group_.leads()) open(), pack();
  group_.barrier();
  if (!teach()) return false;
  if (group_.leads()) measure();
  group_.barrier();
  if (stop_wanted(g_stop, group_)) return false;
  if (trains() && (!train("sparse") || (o_.twin && !train("twin")))) return false;
  if (group_.leads() && trains()) measure_trained();
  if (stop_wanted(g_stop, group_)) return false;
  if (group_.leads()) package();
  group_.barrier();
  return true;
}

void adapt(Options o, Common& common) {
  // Where the model is trained on, it is held against what its indexers kept at the length it is trained at.
  bool trains = parse_count(o.sparse_tokens, "--sparse-tokens") > 0;
  bool own_length = std::find(o.contexts.begin(), o.contexts.end(), o.teaching.context) != o.contexts.end();
  if (o.contexts.empty() || (trains && !own_length)) o.contexts.push_back(o.teaching.context);
  auto launch = read_launch([](const char* name) -> const char* { return std::getenv(name); });
  if (common.threads == 0 && launch.local_size > 1) set_threads(std::max(1, threads() / launch.local_size));
  ProcessGroup group(launch);
  Adaptation adaptation(o, group);
  if (group.leads()) adaptation.print_plan();
  if (o.plan) return;
  bool finished = false;
  try {
    finished = adaptation.run();
  } catch (const std::exception& error) {
    std::string what = error.what();
    group.leave(what.substr(0, what.find('\n')));
    throw;
  }
  if (!finished) common.exit_code = stop_code();
  if (!group.leads()) return;
  if (!finished) return void(std::fprintf(stderr, "stopped; the same command goes on from here\n"));
  if (common.json) return void(std::printf("%s\n", Json{{"out", o.out}, {"record", adaptation.record()}}.dump().c_str()));
  std::printf("%s\n%s: try it: fulgur generate --model %s --prompt \"The \"\n", adapt_tables(adaptation.record()).c_str(),
              o.out.c_str(), o.out.c_str());
}

}  // namespace

void add_adapt(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("adapt", "Sparse attention for a dense model: indexers beside its attention, taught by it");
  command->add_option("--model", o->model, "Model folder or GGUF file: Llama or DeepSeek-V3 family")->required();
  command->add_option("--data", o->data, "Files and folders of text, one a kind; a fifth of the documents is held out")
      ->required()
      ->check(CLI::ExistingPath);
  command->add_option("--out", o->out, "Folder to write; OUT.work is kept until it is, and a stopped run goes on from it")
      ->required();
  command->add_flag("--plan", o->plan, "Say what it would take, and end");
  command
      ->add_option("--index-keys", o->index_keys, "tied: the attention's own keys; own: keys of their own (default: llama tied)")
      ->check(CLI::IsMember({"tied", "own"}));
  command->add_option("--index-n-heads", o->index_n_heads,
                      "Heads of an indexer (default: the model's, else as many as attention has)");
  command->add_option("--index-head-dim", o->index_head_dim,
                      "Width of the heads of an indexer with its own keys (default: the model's, else as attention's)");
  command->add_option("--index-topk", o->index_topk, "Keys it chooses (default: an eighth of the context)");
  auto number = [&](const char* flag, auto& field, const char* text) {
    command->add_option(flag, field, text)->capture_default_str()->check(CLI::PositiveNumber);
  };
  auto& t = o->teaching;
  number("--context", t.context, "Tokens a sequence");
  number("--sequences", t.sequences, "Sequences to learn from, at most: it ends where neither attention nor perplexity gain");
  number("--batch", t.batch, "Sequences a step; with torchrun a multiple of the processes");
  number("--passes", t.passes, "Gradient steps of each indexer a step");
  number("--rows", t.rows, "Rows of each sequence a gradient step");
  number("--lr", t.lr, "Rate at the start; it falls linearly to 0");
  number("--look-every", o->look_every, "Steps between looks at held-out text, and checkpoints");
  number("--seed", t.seed, "Of rows, of the order of the text, and of indexers with keys of their own");
  command->add_option("--sparse-tokens", o->sparse_tokens, "Then train all of the model on chosen keys, on so many tokens")
      ->capture_default_str();
  command->add_option("--sparse-lr", o->sparse_lr, "Rate of the model there; 0: indexers alone")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  number("--sparse-indexer-lr", o->sparse_indexer_lr, "Rate of the indexers there");
  command->add_flag("--twin", o->twin, "Train the dense model on the same tokens too, to tell the text's effect from sparsity's");
  command->add_option("--measure", o->contexts, "Lengths of held-out documents to measure on (default: --context)")
      ->check(CLI::PositiveNumber);
  command->add_flag("!--no-baselines", o->baselines,
                    "Do not measure perplexity of the best choice and of a window, half of the work");
  number("--documents", o->documents, "Held-out documents of each kind to measure on, at most");
  command->add_option("--dtype", o->dtype, "Precision of the weights written")
      ->capture_default_str()
      ->check(CLI::IsMember({"f32", "bf16"}));
  command->footer(
      "Example:\n  fulgur adapt --model SmolLM2-135M-Instruct.Q4_1.gguf --data notes/ --out smollm2-sparse\n"
      "Two processes:\n  torchrun --nproc-per-node 2 --no-python fulgur adapt --batch 2 --model smollm2 --data notes/ --out "
      "smollm2-sparse");
  command->callback([=, &common] { adapt(*o, common); });
}

}  // namespace fulgur::cli
