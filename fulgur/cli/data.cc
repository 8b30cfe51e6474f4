// Text in: tokenizer train, encode, decode; data pack.
#include <cstdio>
#include <iostream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/cli/cli.h"
#include "fulgur/text/splitter.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/train/data/documents.h"
#include "fulgur/train/data/shards.h"

namespace fulgur::cli {
namespace {

struct TokenizerOptions {
  std::vector<std::string> inputs, special{"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"};
  std::string tokenizer, out;
  int64_t vocab_size = 4096;
  bool parse_special = false;
};

void train(const TokenizerOptions& options, bool json) {
  Splitter splitter(deepseek_patterns(), "deepseek_patterns");
  WordCounts words;
  int64_t bytes = 0;
  for (const auto& input : options.inputs)
    for_each_document(input, [&](const Document& document) {
      bytes += int64_t(document.text.size());
      for (auto piece : splitter.split(document.text)) ++words[std::string(piece)];
    });
  BpeOptions bpe{.vocab_size = options.vocab_size, .min_frequency = 2, .special_tokens = options.special};
  auto model = train_bpe(words, bpe);
  write_file_atomic(options.out, tokenizer_json(model, bpe, deepseek_patterns()).dump(1) + "\n");
  if (json) std::printf("%s\n", Json{{"out", options.out}, {"vocab_size", model.vocab.size()}, {"bytes", bytes}}.dump().c_str());
  else
    std::printf("%s: %zu tokens from %s of text\n", options.out.c_str(), model.vocab.size(),
                (human_count(double(bytes)) + "B").c_str());
}

// Reads cases from standard input, one JSON object a line, and answers each with `answer`'s fields or with "error".
void each_case(const std::function<Json(const Json&)>& answer) {
  for (std::string line; std::getline(std::cin, line);) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    Json out = Json::object();
    try {
      Json in = parse_json(line, "standard input");
      FULGUR_CHECK(in.is_object(), "[tokenizer] expected a JSON object a line, got ", line.substr(0, 60));
      if (in.contains("id")) out["id"] = in["id"];
      out.update(answer(in));
    } catch (const std::exception& error) {
      out["error"] = error.what();
    }
    std::cout << out.dump(-1, ' ', false, Json::error_handler_t::replace) << "\n" << std::flush;
  }
}

CLI::App* tokenizer_command(CLI::App& parent, const char* name, const char* text, TokenizerOptions& options) {
  auto* command = parent.add_subcommand(name, text);
  command->add_option("--tokenizer", options.tokenizer, "tokenizer.json")->required();
  return command;
}

struct PackFlags {
  std::vector<std::string> inputs;
  std::string tokenizer, out;
  int64_t holdout_every = 0;
  uint64_t seed = 1;
};

void pack_command(const PackFlags& flags, bool json) {
  std::unique_ptr<Progress> progress;
  PackOptions options{.tokenizer = flags.tokenizer, .out = flags.out, .holdout_every = flags.holdout_every, .seed = flags.seed};
  options.inputs.assign(flags.inputs.begin(), flags.inputs.end());
  auto summary = pack(options, [&](int64_t done, int64_t total) {
    if (!progress) progress = std::make_unique<Progress>("pack", "B", total);
    progress->update(done);
  });
  progress.reset();
  Json out = Json::object();
  for (auto [name, split] : {std::pair("train", summary.train), std::pair("valid", summary.valid)}) {
    out[name] = {{"documents", split.documents}, {"tokens", split.tokens}, {"bytes", split.bytes}};
    if (!json)
      std::printf("%s: %lld documents, %s tokens, %sB\n", name, static_cast<long long>(split.documents),
                  human_count(double(split.tokens)).c_str(), human_count(double(split.bytes)).c_str());
  }
  if (json) std::printf("%s\n", out.dump().c_str());
}

}  // namespace

void add_tokenizer(CLI::App& app, Common& common) {
  auto options = std::make_shared<TokenizerOptions>();
  auto* command = app.add_subcommand("tokenizer", "Byte-level BPE: train, encode, decode");
  command->require_subcommand(1);
  command->footer("Example:\n  echo '{\"id\": 1, \"text\": \"Hello\"}' | fulgur tokenizer encode --tokenizer tokenizer.json");
  auto* trainer = command->add_subcommand("train", "Trains a tokenizer.json on files and folders of text");
  trainer->add_option("inputs", options->inputs, "Files and folders")->required();
  trainer->add_option("--out", options->out, "tokenizer.json to write")->required();
  trainer->add_option("--vocab-size", options->vocab_size, "Tokens, bytes and special ones included")->capture_default_str();
  trainer->add_option("--special", options->special, "Special tokens, first ids in this order");
  trainer->footer("Example:\n  fulgur tokenizer train notes/ --vocab-size 8192 --out tokenizer.json");
  trainer->callback([=, &common] { train(*options, common.json); });

  auto* encoder = tokenizer_command(*command, "encode", "JSON Lines {id, text} to {id, ids}", *options);
  encoder->add_flag("--parse-special", options->parse_special, "Special tokens' texts become their ids");
  encoder->footer("Example:\n  echo '{\"id\": 1, \"text\": \"Hello\"}' | fulgur tokenizer encode --tokenizer tokenizer.json");
  encoder->callback([=] {
    Tokenizer tokenizer(options->tokenizer);
    each_case([&](const Json& in) -> Json {
      FULGUR_CHECK(in.contains("text") && in["text"].is_string(), "[tokenizer] expected a string \"text\", got none");
      return {{"ids", tokenizer.encode(in["text"].get<std::string>(), options->parse_special)}};
    });
  });

  auto* decoder = tokenizer_command(*command, "decode", "JSON Lines {id, ids} to {id, text}", *options);
  decoder->footer("Example:\n  echo '{\"id\": 1, \"ids\": [40, 41]}' | fulgur tokenizer decode --tokenizer tokenizer.json");
  decoder->callback([=] {
    Tokenizer tokenizer(options->tokenizer);
    each_case([&](const Json& in) -> Json {
      FULGUR_CHECK(in.contains("ids") && in["ids"].is_array(), "[tokenizer] expected an array \"ids\", got none");
      return {{"text", valid_utf8(tokenizer.decode(in["ids"].get<std::vector<int32_t>>()))}};
    });
  });
}

void add_data(CLI::App& app, Common& common) {
  auto flags = std::make_shared<PackFlags>();
  auto* command = app.add_subcommand("data", "Token shards for training");
  command->require_subcommand(1);
  command->footer("Example:\n  fulgur data pack notes/ --tokenizer tokenizer.json --out shards");
  auto* packer = command->add_subcommand("pack", "Files and folders (text, HTML, JSON Lines; also gzipped) to token shards");
  packer->add_option("inputs", flags->inputs, "Files and folders")->required();
  packer->add_option("--tokenizer", flags->tokenizer, "tokenizer.json; a copy goes into the folder")->required();
  packer->add_option("--out", flags->out, "Folder of shards to write")->required();
  packer->add_option("--holdout-every", flags->holdout_every,
                     "Every n-th document is for validation (default: one of 50, drawn)");
  packer->add_option("--seed", flags->seed, "Draws the validation documents")->capture_default_str();
  packer->footer("Example:\n  fulgur data pack notes/ --tokenizer tokenizer.json --out shards");
  packer->callback([=, &common] { pack_command(*flags, common.json); });
}

}  // namespace fulgur::cli
