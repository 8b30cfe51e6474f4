// Pass keys in long texts, asked for by each form of attention.
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/interval.h"
#include "fulgur/base/progress.h"
#include "fulgur/cli/cli.h"
#include "fulgur/eval/needles.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string model;
  std::vector<std::string> forms{"dense", "sparse", "window"};
  std::vector<int64_t> contexts, keys{1, 8};
  int64_t index_topk = 0;
  NeedleTest test;
};

void needles(const Options& o, Common& common) {
  auto path = find_model(o.model);
  ModelFiles files(path);
  Json changes = Json::object();
  if (o.index_topk > 0) changes["index_topk"] = o.index_topk;
  auto model = files.load(/*share_mtp=*/true, changes);
  Tokenizer tokenizer(files.vocabulary());
  auto contexts = o.contexts.empty() ? std::vector{model.config().max_position_embeddings} : o.contexts;
  Json results = Json::array();
  if (!common.json) std::printf("%8s %6s %-8s %12s %20s\n", "context", "keys", "form", "right", "95 % interval");
  for (int64_t context : contexts)
    for (int64_t keys : o.keys)
      for (const auto& name : o.forms) {
        auto test = o.test;
        test.form = name == "dense" ? EvalForm::dense : name == "sparse" ? EvalForm::sparse : EvalForm::window;
        test.context = context, test.keys = keys;
        FULGUR_CHECK(context <= model.config().max_position_embeddings, "[eval] --contexts: expected at most the model's ",
                     model.config().max_position_embeddings, " tokens, got ", context);
        FULGUR_CHECK(name == "dense" || model.config().has_indexer(), "[eval] expected a model with an indexer for ", name,
                     ", got ", model.config().model_type, "\n  hint: --forms dense");
        Progress progress(cat("needles ", name), "question", test.samples);
        auto [right, asked] = count_needles(model, tokenizer, test, [&](int64_t done) {
          progress.update(done);
          return !g_stop;
        });
        if (g_stop) return void(common.exit_code = stop_code());
        auto [low, high] = share_interval(double(right), double(asked));
        results.push_back({{"context", context},
                           {"keys", keys},
                           {"form", name},
                           {"k", model.config().index_topk},
                           {"right", right},
                           {"samples", asked},
                           {"low", low},
                           {"high", high}});
        if (common.json) continue;
        std::printf("%8lld %6lld %-8s %6lld of %3lld        %.3f to %.3f\n", static_cast<long long>(context),
                    static_cast<long long>(keys), name.c_str(), static_cast<long long>(right), static_cast<long long>(asked), low,
                    high);
        std::fflush(stdout);
      }
  if (common.json) std::printf("%s\n", Json{{"model", path.string()}, {"needles", results}}.dump().c_str());
}

}  // namespace

void add_eval_needles(CLI::App& eval, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = eval.add_subcommand("needles", "Pass keys hidden in long texts, asked for by each form of attention");
  command->add_option("--model", o->model, "Model folder or run directory")->required();
  command->add_option("--contexts", o->contexts, "Tokens of a text (default: the model's)")->check(CLI::PositiveNumber);
  command->add_option("--forms", o->forms, "dense, sparse, window (last k, 4 of them sinks)")
      ->check(CLI::IsMember({"dense", "sparse", "window"}));
  command->add_option("--keys", o->keys, "Pass keys told in a text, each of them asked for")->check(CLI::PositiveNumber);
  command->add_option("--index-topk", o->index_topk, "Keys that attention chooses (default: the model's)")
      ->check(CLI::PositiveNumber);
  command->add_option("--samples", o->test.samples, "Questions of each kind")->capture_default_str()->check(CLI::PositiveNumber);
  command->add_option("--seed", o->test.seed, "Of keys and places")->capture_default_str();
  command->footer("Example:\n  fulgur eval needles --model smollm2-sparse --contexts 2048 --samples 50");
  command->callback([=, &common] { needles(*o, common); });
}

}  // namespace fulgur::cli
