// Text: how fast a tokenizer encodes; what constraints cost, and whether they lead to an end.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <latch>
#include <numeric>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/python_json.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/engine/engine.h"
#include "fulgur/model/transformer.h"
#include "fulgur/text/constraint.h"
#include "fulgur/text/schema.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string tokenizer, text, schemas, out;
  int64_t texts = 10;
};

void bench_tokenizer(const Options& o) {
  constexpr size_t kPart = 50000;
  Tokenizer tokenizer(o.tokenizer);
  auto text = read_file(o.text);
  std::vector<std::string_view> parts;
  for (size_t at = 0, end; at < text.size(); at = end) {
    end = std::min(text.size(), at + kPart);
    while (end < text.size() && (text[end] & 0xc0) == 0x80) ++end;  // a character is not cut
    parts.push_back(std::string_view(text).substr(at, end - at));
  }
  std::vector<int64_t> ids(parts.size());
  double seconds = time_once(
      [&] { parallel_for(int64_t(parts.size()), [&](int64_t i) { ids[i] = int64_t(tokenizer.encode(parts[i]).size()); }); });
  int64_t total = std::accumulate(ids.begin(), ids.end(), int64_t(0));
  std::printf("%.1f MB in %.2f s, %d threads: %.1f MB/s, %.2f M tokens/s\n", double(text.size()) / 1e6, seconds, threads(),
              double(text.size()) / 1e6 / seconds, double(total) / 1e6 / seconds);
  Json result{{"name", "tokenizer"}, {"case", o.text},       {"threads", threads()},
              {"seconds", seconds},  {"bytes", text.size()}, {"ids", total}};
  std::printf("%s\n", Json{{"machine", machine_json()}, {"results", {result}}}.dump().c_str());
}

// A model that knows nothing, over this vocabulary.
Transformer random_model(const Tokenizer& tokenizer) {
  ModelConfig c;
  c.model_type = "llama", c.vocab_size = (tokenizer.vocab_size() + 15) / 16 * 16;
  c.hidden_size = 32, c.intermediate_size = 64, c.num_hidden_layers = c.first_k_dense_replace = 1;
  c.num_attention_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 16, c.max_position_embeddings = 8192;
  validate(c, "random model");
  return Transformer(c, init_weights(c, 1));
}

struct Costs {
  std::vector<double> mask_us;
  int64_t dead_ends = 0;
};

// The masks of a text's tokens once more, by a constraint that knows nothing yet of this schema.
void measure(const Constraint& constraint, const std::vector<int32_t>& ids, Costs& costs) {
  int32_t state = constraint.start();
  for (int32_t id : ids) {
    std::shared_ptr<const TokenMask> mask;
    costs.mask_us.push_back(1e6 * time_once([&] { mask = constraint.mask(state); }));
    costs.dead_ends += std::all_of(mask->begin(), mask->end(), [](uint64_t word) { return word == 0; });
    state = constraint.advance(state, id);
  }
}

// Answers to one-token prompts, all at once.
std::vector<std::pair<std::vector<int32_t>, Finish>> answers(Engine& engine, std::shared_ptr<const Constraint> constraint,
                                                             int64_t count, uint64_t seed) {
  std::vector<std::pair<std::vector<int32_t>, Finish>> out(count);
  std::latch ended(count);
  for (int64_t i = 0; i < count; ++i) {
    Request request{.prompt = {int32_t(i)}, .max_tokens = 4000, .constraint = constraint};
    request.sampling.seed = seed + uint64_t(i);
    engine.submit(std::move(request), [&, i](const Event& event) {
      if (event.token) out[i].first.push_back(event.token->id);
      if (event.finish) out[i].second = *event.finish, ended.count_down();
    });
  }
  ended.wait();
  return out;
}

void bench_constraint(const Options& o) {
  Tokenizer tokenizer(o.tokenizer);
  auto tree = std::make_shared<const TokenTree>(tokenizer);
  Engine engine(random_model(tokenizer), {.dense = true, .max_context = 4096, .cache_bytes = int64_t(1) << 28});
  std::ifstream in(o.schemas);
  std::vector<Json> schemas;
  for (std::string line; std::getline(in, line);) schemas.push_back(parse_python_json(line, o.schemas));
  std::string written;
  Costs costs;
  Progress progress("constraint", "schemas", int64_t(schemas.size()));
  int64_t done = 0;
  for (const auto& schema : schemas) {
    auto constraint = std::make_shared<const Constraint>(schema_grammar(schema), tree);
    Constraint fresh(schema_grammar(schema), tree);
    for (const auto& [ids, finish] : answers(engine, constraint, o.texts, uint64_t(done * o.texts))) {
      measure(fresh, ids, costs);
      written += dump_python_json({{"schema", schema}, {"text", tokenizer.decode(ids)}, {"finish", finish_name(finish)}}) + "\n";
    }
    progress.update(++done);
  }
  write_file_atomic(o.out, written);
  FULGUR_CHECK(!costs.mask_us.empty(), "[bench] expected schemas in ", o.schemas, ", got none");
  auto& us = costs.mask_us;
  std::sort(us.begin(), us.end());
  double mean = std::accumulate(us.begin(), us.end(), 0.0) / double(us.size());
  auto share = [&](double part) { return us[size_t(part * double(us.size() - 1))]; };
  std::printf("%zu masks of %lld tokens: mean %.1f us, median %.1f, 99 %% below %.0f, longest %.0f; %lld dead ends\n", us.size(),
              static_cast<long long>(tokenizer.vocab_size()), mean, share(.5), share(.99), us.back(),
              static_cast<long long>(costs.dead_ends));
  Json result{{"name", "constraint"}, {"case", o.schemas},       {"vocabulary", tokenizer.vocab_size()},
              {"tokens", us.size()},  {"mask_us", mean},         {"median_us", share(.5)},
              {"p99_us", share(.99)}, {"longest_us", us.back()}, {"dead_ends", costs.dead_ends}};
  std::printf("%s\n", Json{{"machine", machine_json()}, {"results", {result}}}.dump().c_str());
}

}  // namespace

void add_bench_text(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* tokenizer = bench.add_subcommand("tokenizer", "Encodes a text on all threads, 50 KB at a time");
  tokenizer->add_option("--tokenizer", o->tokenizer, "tokenizer.json")->required();
  tokenizer->add_option("--text", o->text, "File of text")->required();
  tokenizer->footer("Example:\n  fulgur bench tokenizer --tokenizer tokenizer.json --text book.txt");
  tokenizer->callback([=] { bench_tokenizer(*o); });

  auto* constraint =
      bench.add_subcommand("constraint", "Answers under schemas by a model of random weights; the time masks take");
  constraint->add_option("--tokenizer", o->tokenizer, "tokenizer.json")->required();
  constraint->add_option("--schemas", o->schemas, "JSON Schemas, one a line")->required();
  constraint->add_option("--texts", o->texts, "Answers for each")->capture_default_str()->check(CLI::PositiveNumber);
  constraint->add_option("--out", o->out, "JSON Lines {schema, text, finish} to write")->required();
  constraint->footer("Example:\n  fulgur bench constraint --tokenizer tokenizer.json --schemas schemas.jsonl --out texts.jsonl");
  constraint->callback([=] { bench_constraint(*o); });
}

}  // namespace fulgur::cli
