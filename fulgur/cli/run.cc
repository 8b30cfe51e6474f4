#include "fulgur/cli/run.h"

#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/random.h"
#include "fulgur/base/utf8.h"
#include "fulgur/engine/engine.h"
#include "fulgur/eval/evaluate.h"
#include "fulgur/eval/report.h"
#include "fulgur/rl/trainer.h"
#include "fulgur/tasks/drills.h"
#include "fulgur/text/splitter.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/text/v32_encode.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/data/documents.h"
#include "fulgur/train/data/shards.h"

namespace fulgur::cli {
namespace fs = std::filesystem;

constexpr int64_t kEvalTokens = 200000;  // more than the speedrun holds out, so that every context reads the same text

namespace {

// The model of a run: the recipe's, or that of `init` with the recipe's [model] keys in place of its own.
Json model_of(const Recipe& recipe, const fs::path& init) {
  if (init.empty()) return config_json(model_config(recipe));
  Json json = read_json(init / "config.json");
  for (const auto& [key, value] : recipe.model.items()) json[key] = value;
  return config_json(parse_config(json, cat((init / "config.json").string(), " with the recipe's [model]")));
}

// Whether a field of the recipe, "/pretrain/keep_last", must be what the run was begun with. Fields that only say how a run
// is watched may differ from call to call, and so may those of stages that have no checkpoint yet, or are others than `stage`.
bool binds(const std::string& path, const std::string& stage, const fs::path& run) {
  auto section = path.substr(1, path.find('/', 1) - 1), key = path.substr(path.rfind('/') + 1);
  bool of_rl = section == "rl",
       of_stage = of_rl || std::find(std::begin(kStages), std::end(kStages), section) != std::end(kStages);
  if (!of_stage) return true;
  return (stage.empty() || stage == section) && (of_rl ? rl_changes_result(key) : changes_result(key)) &&
         has_checkpoints(run, section);
}

}  // namespace

Run::Run(fs::path given, const Recipe& given_recipe, ProcessGroup& group, const RunOptions& options)
    : folder(std::move(given)),
      data(folder / "data"),
      recipe(given_recipe),
      group_(group),
      options_(options),
      config_(model_of(recipe, options.init.empty() ? options.init : find_model(options.init))) {
  auto path = folder / "run.json";
  if (fs::exists(path)) {
    record_ = read_json(path);
    Json now = recipe_json(recipe).flatten(), then = record_.value("recipe", Json::object()).flatten();
    for (const auto& [key, value] : now.items())
      FULGUR_CHECK(options_.force || !binds(key, options_.stage, folder) || (then.contains(key) && then[key] == value), "[run] ",
                   path.string(), ": recipe", key, ": expected ", then.contains(key) ? then[key].dump() : "nothing",
                   " as this run was begun with, got ", value.dump(),
                   "\n  hint: give another --out, or the same recipe and flags to go on; --force goes on anyhow");
    const Json sections = recipe_json(recipe);
    for (const auto& [key, value] : sections.items())
      if (options_.stage.empty() || options_.stage == key || options_.force) record_["recipe"][key] = value;
    config_ = record_.value("model", config_);
    return;
  }
  if (!group_.leads()) return;
  fs::create_directories(data);
  record_ = {{"recipe", recipe_json(recipe)},
             {"model", config_},
             {"machine", machine_json()},
             {"steps", Json::object()},
             {"starts", Json::array()}};
  save();
}

void Run::save() { write_file_atomic(folder / "run.json", record_.dump(2) + "\n"); }

void Run::once(const std::string& name, const std::string& label, const std::function<void()>& work) {
  if (record_["steps"].contains(name)) return;
  if (g_stop) return;
  std::fprintf(stderr, "%s\n", label.c_str());
  auto start = std::chrono::steady_clock::now();
  work();
  record_["steps"][name] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  save();
}

fs::path Run::text_path() const {
  bool fetched = recipe.text == "mix" || recipe.text == "kjv";
  return fetched ? folder / "text" : fs::path(recipe.text);
}

void Run::text() {
  if (recipe.text != "mix" && recipe.text != "kjv") return;
  once("text", "text      fetching from Debian packages", [&] {
    std::string quoted = "'";
    for (char c : (folder / "text").string()) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    auto command = cat("'", resource("recipes/fetch_text.sh").string(), "' ", recipe.text == "kjv" ? "--kjv " : "", quoted, "'");
    int status = std::system(command.c_str());
    FULGUR_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0,
                 "[text] expected recipes/fetch_text.sh to fetch text, got exit code ",
                 WIFEXITED(status) ? WEXITSTATUS(status) : -1, "\n  hint: fulgur speedrun --data PATH takes your own text");
    add_drills();
  });
}

// Beside the text, as one more file of it.
void Run::add_drills() const {
  double bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder / "text"))
    if (entry.is_regular_file()) bytes += double(entry.file_size());
  RandomStream random(recipe.seed, "run.drills");
  std::string lines;
  for (double made = 0; made < bytes * recipe.drills;) {
    auto text = drill(random);
    made += double(text.size());
    lines += Json{{"text", text}}.dump() + "\n";
  }
  if (!lines.empty()) write_file_atomic(folder / "text/drills.jsonl", lines);
}

void Run::tokenizer() {
  once("tokenizer", cat("tokenizer training ", recipe.vocab_size, " tokens of byte-level BPE"), [&] {
    Splitter splitter(deepseek_patterns(), "deepseek_patterns");
    WordCounts words;
    for_each_document(text_path(), [&](const Document& document) {
      splitter.split(document.text, [&](std::string_view piece) { ++words[std::string(piece)]; });
    });
    BpeOptions options{.vocab_size = recipe.vocab_size,
                       .min_frequency = 2,
                       .special_tokens = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"}};
    if (!recipe.demos.tasks.empty()) options.special_tokens = v32_special_tokens(), options.added_tokens = v32_fixed_texts();
    write_file_atomic(data / "tokenizer.json",
                      tokenizer_json(vocabulary_of(train_bpe(words, options), options, deepseek_patterns())).dump(1) + "\n");
  });
}

void Run::pack() {
  once("pack", "pack      tokens into shards", [&] {
    std::unique_ptr<Progress> progress;
    auto summary = fulgur::pack({.inputs = {text_path()},
                                 .tokenizer = data / "tokenizer.json",
                                 .out = data,
                                 .holdout_every = recipe.holdout_every,
                                 .seed = recipe.seed},
                                [&](int64_t done, int64_t total) {
                                  if (!progress) progress = std::make_unique<Progress>("pack", "B", total);
                                  progress->update(done);
                                });
    auto json = [](const auto& split) {
      return Json{{"documents", split.documents}, {"tokens", split.tokens}, {"bytes", split.bytes}};
    };
    record_["data"] = {{"train", json(summary.train)}, {"valid", json(summary.valid)}};
    if (recipe.lead_in > 0) pack_lead_in();
  });
}

void Run::pack_lead_in() const {
  Tokenizer tokenizer(data / "tokenizer.json");
  RandomStream random(recipe.seed, "run.lead_in");
  std::string lines;
  for (int64_t tokens = 0; tokens < recipe.lead_in;) {
    auto text = repeated_line(random);
    tokens += int64_t(tokenizer.encode(text).size()) + 2;  // and BOS, EOS
    lines += Json{{"text", text}}.dump() + "\n";
  }
  fs::create_directories(data / "lead_in");
  write_file_atomic(data / "lead_in/repeats.jsonl", lines);
  fulgur::pack({.inputs = {data / "lead_in/repeats.jsonl"}, .tokenizer = data / "tokenizer.json", .out = data / "lead_in"},
               [](int64_t, int64_t) {});
}

void Run::demonstrate() {
  if (recipe.demos.tasks.empty()) return;
  once("demos", cat("demos     ", recipe.demos.count, " conversations of scripts"),
       [&] { write_file_atomic(data / "messages.jsonl", demonstrations(recipe.demos, Split::train, recipe.seed)); });
}

fs::path Run::initial_model() {
  auto init = folder / "checkpoints" / "init-00000000";
  if (!fs::exists(init / "config.json")) {
    auto config = parse_config(config_, "recipe [model]");
    fs::create_directories(init.parent_path());
    Transformer model(config, init_weights(config, recipe.seed));
    save_checkpoint(init, model, nullptr, data / "tokenizer.json", {.stage = "init"});
  }
  return init;
}

namespace {

std::string before(const std::string& stage) { return *(std::find(std::begin(kStages), std::end(kStages), stage) - 1); }

}  // namespace

bool Run::train(const std::string& stage) {
  if (g_stop) return false;
  fs::path model = options_.init;
  if (group_.leads()) {
    if (model.empty()) model = stage == kStages[0] ? initial_model() : find_model(folder, before(stage));
    record_start(stage);
  }
  auto result = train_stage(effective_stage(recipe, stage),
                            {.run = folder,
                             .data = data,
                             .model = model,
                             .lead_in = stage == "pretrain" && fs::exists(data / "lead_in") ? data / "lead_in" : fs::path(),
                             .messages = options_.messages.empty() ? data / "messages.jsonl" : options_.messages,
                             .config = config_,
                             .stop = &g_stop,
                             .force = options_.force},
                            group_);
  return result.finished;
}

bool Run::reinforce() {
  if (g_stop) return false;
  fs::path model = options_.init;
  if (group_.leads()) {
    if (model.empty()) model = find_model(folder, "sft");
    record_start("rl");
  }
  model = group_.from_leader(model.string());
  RlConfig config = recipe.rl;
  config.seed = recipe.seed;
  return train_rl(config, {.run = folder, .model = model, .stop = &g_stop, .force = options_.force}, group_).finished;
}

void Run::record_start(const std::string& stage) {
  record_["starts"].push_back({{"stage", stage}, {"processes", group_.size()}, {"machine", machine_json()}});
  save();
}

void Run::evaluate() {
  once("evaluate", "evaluate  held-out text, dense, sparse and window", [&] {
    int64_t context = recipe.sparse.context;
    std::vector<std::string> trained;
    for (std::string stage : kStageNames)
      if (has_checkpoints(folder, stage)) trained.push_back(stage);
    auto model = load_model(find_model(folder, trained.back()));
    std::vector<int64_t> contexts{context / 4, context / 2, context};
    std::vector<EvalForm> forms{EvalForm::dense, EvalForm::sparse, EvalForm::window};
    Json stages = Json::array();
    for (const auto& stage : trained) {
      bool last = stage == trained.back();
      auto of_stage = last ? model : load_model(find_model(folder, stage));
      auto perplexity =
          evaluate_perplexity(of_stage, data, forms, last ? contexts : std::vector{context}, kEvalTokens, at::kFloat);
      stages.push_back(
          {{"stage", stage}, {"perplexity", perplexity}, {"indexer", evaluate_indexer(of_stage, data, context, 16)}});
    }
    std::vector<int64_t> lengths;
    for (int64_t length = context / 2; length <= 8 * context; length *= 2) lengths.push_back(length);
    Json eval = {{"stages", stages}, {"cost", measure_cost(model, lengths)}, {"maps", selection_maps(model, data, context, 64)}};

    Tokenizer tokens(data / "tokenizer.json");
    fs::create_directories(folder / "samples");
    eval["samples"] = Json::array();
    Engine engine(model, {});
    std::vector<std::string> prompts{"The ", "And it came to pass", "In the beginning"};
    for (size_t i = 0; i < prompts.size(); ++i) {
      auto prompt = tokens.encode(prompts[i]);
      prompt.insert(prompt.begin(), int32_t(model.config().bos_token_id));
      Request request{.prompt = prompt, .max_tokens = 120, .stop_tokens = {int32_t(model.config().eos_token_id)}};
      request.sampling = {.temperature = 0.8, .top_p = 0.95, .seed = i + 1};
      std::vector<int32_t> made;
      for (const auto& token : complete(engine, request).tokens) made.push_back(token.id);
      auto text = valid_utf8(prompts[i] + tokens.decode(made, /*skip_special=*/true));
      write_file_atomic(folder / "samples" / cat("sample-", i + 1, ".txt"), text + "\n");
      eval["samples"].push_back({{"prompt", prompts[i]}, {"text", text}});
    }
    write_file_atomic(folder / "eval.json", eval.dump() + "\n");
  });
}

void Run::report() { write_report(folder); }

}  // namespace fulgur::cli
