// What was trained, used: generate, eval perplexity, report.
#include <algorithm>
#include <cstdio>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/python_json.h"
#include "fulgur/base/system_memory.h"
#include "fulgur/base/utf8.h"
#include "fulgur/cli/cli.h"
#include "fulgur/engine/engine.h"
#include "fulgur/eval/compare.h"
#include "fulgur/eval/evaluate.h"
#include "fulgur/eval/report.h"
#include "fulgur/text/constraint.h"
#include "fulgur/text/schema.h"
#include "fulgur/text/stop_text.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string model, prompt, attention = "sparse", dtype = "f32", data, out;
  std::vector<std::filesystem::path> runs;
  std::vector<std::string> forms{"dense", "sparse", "window"};
  std::vector<int64_t> contexts;
  std::string weights_format = "plain", cache = "plain";
  Request request;
  std::string schema, regex;
  std::vector<std::string> stops;
  bool json_object = false;
  bool draft = true;
  int64_t tokens = 100000, sequences = 64;
};

// What --json-schema, --json-object or --regex ask for; null: nothing.
std::shared_ptr<const Constraint> constraint_of(const Options& o, const Tokenizer& tokenizer) {
  if (o.schema.empty() && !o.json_object && o.regex.empty()) return nullptr;
  auto grammar = o.json_object      ? json_grammar(/*object=*/true)
                      : o.schema.empty() ? regex_grammar(o.regex)
                                    : schema_grammar(parse_python_json(read_file(o.schema), o.schema));
  return std::make_shared<const Constraint>(std::move(grammar), std::make_shared<const TokenTree>(tokenizer));
}

void generate_command(Options o, const CLI::App& command, Common& common) {
  ModelFiles files(find_model(o.model));
  auto model = files.open();
  follow_packing(command, model.weights().packing, &o.attention, o.dtype, o.weights_format);
  Tokenizer tokenizer(files.vocabulary());
  const auto& config = model.config();
  auto prompt = tokenizer.encode(o.prompt, /*parse_special=*/true);
  if (config.bos_token_id >= 0) prompt.insert(prompt.begin(), int32_t(config.bos_token_id));
  o.request.prompt = prompt;
  if (config.eos_token_id >= 0) o.request.stop_tokens = {int32_t(config.eos_token_id)};
  EngineOptions options{.dense = o.attention == "dense" || !config.has_indexer(), .bf16 = o.dtype == "bf16"};
  options.weights = weight_format(o.weights_format), options.cache = cache_format(o.cache);
  options.draft = o.draft && model.weights().mtp;
  options.max_context = int64_t(prompt.size()) + o.request.max_tokens;
  o.request.constraint = constraint_of(o, tokenizer);
  Engine engine(std::move(model), options);
  std::vector<int32_t> made;
  Json top = Json::array();
  std::string text;
  Utf8Stream characters;
  StopText stop(o.stops);
  auto say = [&](const std::string& part) {
    text += part;
    if (!common.json) std::fputs(part.c_str(), stdout), std::fflush(stdout);
  };
  if (!common.json) std::fputs(o.prompt.c_str(), stdout);
  auto start = std::chrono::steady_clock::now();
  auto done = complete(engine, o.request, [&](const Event& event) {
    if (g_stop || stop.stopped()) engine.cancel(event.request);
    if (!event.token || stop.stopped()) return;
    made.push_back(event.token->id);
    if (o.request.top_log_probs > 0) top.push_back(event.token->top);
    say(stop.feed(characters.feed(tokenizer.decode_drawn(made.back(), /*skip_special=*/true))));
    if (stop.stopped()) engine.cancel(event.request);
  });
  say(stop.feed(characters.finish())), say(stop.finish());
  if (done.finish == Finish::failed) throw InputError(done.error);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  auto statistics = engine.statistics();
  if (common.json) {
    Json said{{"prompt", o.prompt}, {"text", text}, {"ids", made}, {"seconds", seconds}};
    if (!top.empty()) said["top"] = top;
    if (options.draft) said["drafted"] = statistics.drafted, said["accepted"] = statistics.accepted;
    if (statistics.experts_needed > 0)
      said["experts"] = {{"needed", statistics.experts_needed},
                         {"in_memory", statistics.experts_present},
                         {"foreseen", statistics.experts_foreseen},
                         {"disk_bytes_read", disk_bytes_read()}};
    std::printf("%s\n", said.dump().c_str());
  } else {
    std::printf("\n");
    std::fprintf(stderr, "%zu tokens, %.0f tokens/s", made.size(), double(made.size()) / seconds);
    if (options.draft)
      std::fprintf(stderr, "; %lld of %lld drafts accepted", static_cast<long long>(statistics.accepted),
                   static_cast<long long>(statistics.drafted));
    if (double needed = double(statistics.experts_needed); needed > 0)
      std::fprintf(stderr, "; of the experts needed %.0f%% foreseen, %.0f%% in memory; %sB read from disk",
                   100 * double(statistics.experts_foreseen) / needed, 100 * double(statistics.experts_present) / needed,
                   human_count(double(disk_bytes_read())).c_str());
    std::fprintf(stderr, "\n");
  }
  if (g_stop) common.exit_code = stop_code();
}

void perplexity_command(const Options& o, bool json) {
  auto folder = find_model(o.model);
  auto model = load_model(folder);
  std::filesystem::path data = o.data.empty() ? std::filesystem::path(o.model) / "data" : std::filesystem::path(o.data);
  std::vector<EvalForm> forms;
  for (const auto& name : o.forms)
    forms.push_back(name == "dense" ? EvalForm::dense : name == "sparse" ? EvalForm::sparse : EvalForm::window);
  auto contexts = o.contexts;
  if (contexts.empty()) contexts = {model.config().max_position_embeddings};
  Json results = Json::array();
  auto weights = weight_format(o.weights_format);
  for (auto form : forms) {
    bool absorbed = form != EvalForm::dense;
    auto stored =
        weights == WeightFormat::plain
            ? model
            : Transformer(model.config(), pack_weights(model.config(), model.weights(), type_of(o.dtype), absorbed, weights));
    auto cache = absorbed ? cache_format(o.cache) : CacheFormat{};
    for (auto& result : evaluate_perplexity(stored, data, {form}, contexts, o.tokens, type_of(o.dtype), cache))
      results.push_back(std::move(result));
  }
  if (json) return void(std::printf("%s\n", Json{{"model", folder.string()}, {"perplexity", results}}.dump().c_str()));
  std::printf("%-8s %8s %10s %14s %12s\n", "form", "context", "tokens", "bits per byte", "tokens/s");
  for (const auto& r : results) {
    std::printf("%-8s %8lld %10lld %14.4f %12.0f\n", r["form"].get<std::string>().c_str(), r["context"].get<long long>(),
                r["tokens"].get<long long>(), r["bits_per_byte"].get<double>(), r["tokens_per_second"].get<double>());
    for (const auto& range : r["by_position"])
      std::printf("  positions %6lld - %6lld %5lld %14.4f\n", range["first"].get<long long>(), range["last"].get<long long>() - 1,
                  range["tokens"].get<long long>(), range["bits_per_byte"].get<double>());
  }
}

// The share of attention's mass that the chosen keys hold, by how a cache keeps the indexer's keys.
void indexer_command(const Options& o, bool json) {
  auto folder = find_model(o.model);
  auto model = load_model(folder);
  FULGUR_CHECK(model.config().has_indexer(), "[eval] expected a model with an indexer, got ", model.config().model_type);
  std::filesystem::path data = o.data.empty() ? std::filesystem::path(o.model) / "data" : std::filesystem::path(o.data);
  int64_t context = o.contexts.empty() ? model.config().max_position_embeddings : o.contexts[0];
  Json results = Json::object();
  if (!json) std::printf("%-8s %8s %8s   of each layer\n", "keys", "recall", "mass");
  for (auto [name, keys] : {std::pair("plain", KeyFormat::plain), {"fp8", KeyFormat::fp8}, {"int8", KeyFormat::int8}}) {
    const auto& of_layers = results[name] = evaluate_indexer(model, data, context, o.sequences, keys);
    auto mean = [&](const char* what) {
      double sum = 0;
      for (double value : of_layers[what]) sum += value;
      return sum / double(of_layers[what].size());
    };
    if (json) continue;
    std::printf("%-8s %8.4f %8.5f  ", name, mean("recall"), mean("mass"));
    for (double mass : of_layers["mass"]) std::printf(" %.5f", mass);
    std::printf("\n");
    std::fflush(stdout);
  }
  if (json) std::printf("%s\n", Json{{"model", folder.string()}, {"indexer", results}}.dump().c_str());
}

}  // namespace

void add_sampling(CLI::App& command, Request& request) {
  command.add_option("--max-tokens", request.max_tokens, "New tokens at most")->capture_default_str()->check(CLI::PositiveNumber);
  command.add_option("--temperature", request.sampling.temperature, "0: the most likely token")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_option("--top-p", request.sampling.top_p, "Sample from the most likely tokens of this probability")
      ->capture_default_str();
  command.add_option("--top-k", request.sampling.top_k, "Sample from so many of the most likely tokens; 0: all")
      ->capture_default_str();
  command.add_option("--min-p", request.sampling.min_p, "Leave out what is less likely than this share of the likeliest")
      ->capture_default_str();
  command.add_option("--seed", request.sampling.seed, "Same seed, same text")->capture_default_str();
}

void add_generate(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  o->request.sampling = {.temperature = 0.8, .top_p = 0.95, .seed = 1};
  auto* command = app.add_subcommand("generate", "Text from a model, token by token through the cache");
  command->add_option("--model", o->model, "Model folder, run directory or GGUF file")->required();
  command->add_option("--prompt", o->prompt, "Text to go on from")->required();
  add_sampling(*command, o->request);
  auto* schema = command->add_option("--json-schema", o->schema, "JSON Schema in a file: the answer is JSON that fits it")
                     ->check(CLI::ExistingFile);
  auto* object = command->add_flag("--json-object", o->json_object, "The answer is a JSON object");
  command->add_option("--regex", o->regex, "The answer matches this regular expression")->excludes(schema)->excludes(object);
  schema->excludes(object);
  command->add_option("--top-log-probs", o->request.top_log_probs, "With --json: so many alternatives of each token")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--stop", o->stops, "The answer ends before this text (may be repeated)");
  command->add_option("--attention", o->attention, "Form of attention")
      ->capture_default_str()
      ->check(CLI::IsMember({"sparse", "dense"}));
  command->add_option("--dtype", o->dtype, "Activations")->capture_default_str()->check(CLI::IsMember({"f32", "bf16"}));
  add_formats(*command, o->weights_format, o->cache);
  command->add_flag("!--no-draft", o->draft, "A token a step; with an MTP layer it guesses one ahead, and the text is the same");
  command->footer("Example:\n  fulgur generate --model runs/speedrun --prompt \"In the beginning\" --temperature 0.7");
  command->callback([=, &common] { generate_command(*o, *command, common); });
}

void add_eval(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("eval", "What a model is worth");
  command->require_subcommand(1);
  command->footer("Example:\n  fulgur eval perplexity --model runs/speedrun --contexts 128 512");
  auto* perplexity = command->add_subcommand("perplexity", "Bits per byte of held-out text, by form of attention and context");
  perplexity->add_option("--model", o->model, "Model folder or run directory")->required();
  perplexity->add_option("--data", o->data, "Folder of token shards with a validation split (default: MODEL/data)");
  perplexity->add_option("--forms", o->forms, "dense, sparse, window (last k, 4 of them sinks)")
      ->check(CLI::IsMember({"dense", "sparse", "window"}));
  perplexity->add_option("--contexts", o->contexts, "Tokens a sequence (default: the model's)")->check(CLI::PositiveNumber);
  perplexity->add_option("--tokens", o->tokens, "Tokens to read at most")->capture_default_str()->check(CLI::PositiveNumber);
  perplexity->add_option("--dtype", o->dtype, "Activations")->capture_default_str()->check(CLI::IsMember({"f32", "bf16"}));
  add_formats(*perplexity, o->weights_format, o->cache);
  perplexity->footer("Example:\n  fulgur eval perplexity --model runs/speedrun --contexts 128 512");
  perplexity->callback([=, &common] { perplexity_command(*o, common.json); });
  auto* indexer = command->add_subcommand("indexer", "How much of the attention the indexer's keys hold, by the cache's format");
  indexer->add_option("--model", o->model, "Model folder or run directory")->required();
  indexer->add_option("--data", o->data, "Folder of token shards with a validation split (default: MODEL/data)");
  indexer->add_option("--context", o->contexts, "Tokens a sequence (default: the model's)")
      ->expected(1)
      ->check(CLI::PositiveNumber);
  indexer->add_option("--sequences", o->sequences, "Sequences to read at most")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  indexer->footer("Example:\n  fulgur eval indexer --model runs/speedrun");
  indexer->callback([=, &common] { indexer_command(*o, common.json); });
  add_eval_needles(*command, common);
}

void add_report(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  auto* command = app.add_subcommand("report", "The HTML report again, from a run's records; of several runs, a comparison");
  command->add_option("runs", o->runs, "Run directory; with two to six, they are compared with the first")
      ->required()
      ->expected(1, 6);
  command->add_option("--out", o->out, "Where the page goes (default: report.html, compare.html in the first run's directory)");
  command->footer("Example:\n  fulgur report runs/speedrun\n  fulgur report runs/before runs/after");
  command->callback([=, &common] {
    Json said;
    if (o->runs.size() > 1) said = compare_runs(o->runs, o->out);
    else said["report"] = write_report(o->runs[0], o->out).string();
    if (common.json) return void(std::printf("%s\n", said.dump(-1, ' ', false, Json::error_handler_t::replace).c_str()));
    if (o->runs.size() > 1) std::printf("%s\n", comparison_text(said).c_str());
    std::printf("%s\n", said["report"].get<std::string>().c_str());
  });
}

}  // namespace fulgur::cli
