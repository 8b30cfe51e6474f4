#include "fulgur/cli/run.h"

#include <sys/wait.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/eval/evaluate.h"
#include "fulgur/eval/generate.h"
#include "fulgur/eval/report.h"
#include "fulgur/text/splitter.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/data/documents.h"
#include "fulgur/train/data/shards.h"

namespace fulgur::cli {
namespace fs = std::filesystem;

constexpr int64_t kEvalTokens = 200000;  // more than the speedrun holds out, so that every context reads the same text

Run::Run(fs::path given, const Recipe& given_recipe) : folder(std::move(given)), data(folder / "data"), recipe(given_recipe) {
  auto path = folder / "run.json";
  if (fs::exists(path)) {
    record_ = read_json(path);
    Json now = recipe_json(recipe).flatten(), then = record_.value("recipe", Json::object()).flatten();
    for (const auto& [key, value] : now.items())
      FULGUR_CHECK(then.contains(key) && then[key] == value, "[run] ", path.string(), ": recipe", key, ": expected ",
                   then.contains(key) ? then[key].dump() : "nothing", " as this run was begun with, got ", value.dump(),
                   "\n  hint: give another --out, or the same recipe and flags to go on");
    return;
  }
  fs::create_directories(data);
  record_ = {{"recipe", recipe_json(recipe)},
             {"model", config_json(model_config(recipe))},
             {"machine", machine_json()},
             {"steps", Json::object()}};
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
  });
}

void Run::tokenizer() {
  once("tokenizer", cat("tokenizer training ", recipe.vocab_size, " tokens of byte-level BPE"), [&] {
    Splitter splitter(deepseek_patterns(), "deepseek_patterns");
    WordCounts words;
    for_each_document(text_path(), [&](const Document& document) {
      for (auto piece : splitter.split(document.text)) ++words[std::string(piece)];
    });
    BpeOptions options{.vocab_size = recipe.vocab_size,
                       .min_frequency = 2,
                       .special_tokens = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"}};
    write_file_atomic(data / "tokenizer.json",
                      tokenizer_json(train_bpe(words, options), options, deepseek_patterns()).dump(1) + "\n");
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
  });
}

fs::path Run::initial_model() {
  auto init = folder / "checkpoints" / "init-00000000";
  if (!fs::exists(init / "config.json")) {
    auto config = model_config(recipe);
    fs::create_directories(init.parent_path());
    Transformer model(config, init_weights(config, recipe.seed));
    save_checkpoint(init, model, nullptr, data / "tokenizer.json", {"init", 0, Json::object()});
  }
  return init;
}

bool Run::train(const std::string& stage, const fs::path& start) {
  if (g_stop) return false;
  fs::path model = start;
  if (model.empty())
    model = stage == "pretrain" ? initial_model() : find_model(folder, stage == "warmup" ? "pretrain" : "warmup");
  auto result = train_stage(effective_stage(recipe, stage), {.run = folder, .data = data, .model = model, .stop = &g_stop});
  return result.finished;
}

void Run::evaluate() {
  once("evaluate", "evaluate  held-out text, dense, sparse and window", [&] {
    int64_t context = recipe.sparse.context;
    auto model = load_model(find_model(folder, "sparse"));
    std::vector<int64_t> contexts{context / 4, context / 2, context};
    std::vector<EvalForm> forms{EvalForm::dense, EvalForm::sparse, EvalForm::window};
    Json stages = Json::array();
    for (std::string stage : {"pretrain", "warmup"}) {
      auto earlier = load_model(find_model(folder, stage));
      stages.push_back({{"stage", stage},
                        {"perplexity", evaluate_perplexity(earlier, data, forms, {context}, kEvalTokens, at::kFloat)},
                        {"indexer", evaluate_indexer(earlier, data, context, 16)}});
    }
    stages.push_back({{"stage", "sparse"},
                      {"perplexity", evaluate_perplexity(model, data, forms, contexts, kEvalTokens, at::kFloat)},
                      {"indexer", evaluate_indexer(model, data, context, 16)}});
    std::vector<int64_t> lengths;
    for (int64_t length = context / 2; length <= 8 * context; length *= 2) lengths.push_back(length);
    Json eval = {{"stages", stages}, {"cost", measure_cost(model, lengths)}, {"maps", selection_maps(model, data, context, 64)}};

    Tokenizer tokens(data / "tokenizer.json");
    fs::create_directories(folder / "samples");
    eval["samples"] = Json::array();
    std::vector<std::string> prompts{"The ", "And it came to pass", "In the beginning"};
    for (size_t i = 0; i < prompts.size(); ++i) {
      auto prompt = tokens.encode(prompts[i]);
      prompt.insert(prompt.begin(), int32_t(model.config().bos_token_id));
      std::vector<int32_t> made;
      generate(model, prompt, {.max_tokens = 120, .seed = i + 1, .eos = int32_t(model.config().eos_token_id)},
               [&](int32_t id) { return made.push_back(id), true; });
      auto text = valid_utf8(prompts[i] + tokens.decode(made, /*skip_special=*/true));
      write_file_atomic(folder / "samples" / cat("sample-", i + 1, ".txt"), text + "\n");
      eval["samples"].push_back({{"prompt", prompts[i]}, {"text", text}});
    }
    write_file_atomic(folder / "eval.json", eval.dump() + "\n");
  });
}

void Run::report() { write_report(folder); }

}  // namespace fulgur::cli
