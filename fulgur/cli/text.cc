// Text and messages: tokenizer train, encode, decode; encode; parse.
#include <cstdio>
#include <functional>
#include <iostream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/progress.h"
#include "fulgur/base/python_json.h"
#include "fulgur/base/utf8.h"
#include "fulgur/cli/cli.h"
#include "fulgur/text/splitter.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/text/v32_encode.h"
#include "fulgur/text/v32_parse.h"
#include "fulgur/train/checkpoint.h"
#include "fulgur/train/data/documents.h"

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
      splitter.split(document.text, [&](std::string_view piece) { ++words[std::string(piece)]; });
    });
  BpeOptions bpe{.vocab_size = options.vocab_size, .min_frequency = 2, .special_tokens = options.special};
  auto model = train_bpe(words, bpe);
  write_file_atomic(options.out, tokenizer_json(vocabulary_of(model, bpe, deepseek_patterns())).dump(1) + "\n");
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
      Json in = parse_python_json(line, "standard input");
      FULGUR_CHECK(in.is_object(), "[input] expected a JSON object a line, got ", line.substr(0, 60));
      if (in.contains("id")) out["id"] = in["id"];
      out.update(answer(in));
    } catch (const std::exception& error) {
      out["error"] = error.what();
    }
    std::cout << dump_python_json(out) << "\n" << std::flush;
  }
}

Tokenizer read_tokenizer(const std::filesystem::path& path) {
  return path.extension() == ".gguf" ? Tokenizer(ModelFiles(path).vocabulary()) : Tokenizer(path);
}

CLI::App* tokenizer_command(CLI::App& parent, const char* name, const char* text, TokenizerOptions& options) {
  auto* command = parent.add_subcommand(name, text);
  command->add_option("--tokenizer", options.tokenizer, "tokenizer.json, or a GGUF file")->required();
  return command;
}

struct MessageOptions {
  std::string mode = "thinking", retention = "paper", tokenizer;
  bool stream = false;
};

// A field of a case, or what the flags say.
std::string mode_of(const Json& in, const MessageOptions& options) {
  return in.contains("thinking_mode") && in["thinking_mode"].is_string() ? in["thinking_mode"].get<std::string>() : options.mode;
}

Json encode_case(const Json& in, const MessageOptions& options, const Tokenizer* tokenizer) {
  FULGUR_CHECK(in.contains("messages"), "[messages] expected a list \"messages\", got none");
  std::vector<Message> context;
  if (in.contains("context") && !in["context"].is_null()) context = messages_of(in["context"], "context");
  bool bos = !in.contains("add_bos") || in["add_bos"] != false;
  auto prompt = encode_v32(messages_of(in["messages"], "messages"),
                           {thinking_mode(mode_of(in, options)), retention(options.retention), bos}, context);
  Json out{{"prompt", prompt.text}};
  if (tokenizer) out["ids"] = tokenizer->encode(prompt);
  return out;
}

Json parse_case(const Json& in, const MessageOptions& options) {
  FULGUR_CHECK(in.contains("completion") && in["completion"].is_string(), "[parse] expected a string \"completion\", got none");
  auto completion = in["completion"].get<std::string>();
  auto mode = thinking_mode(mode_of(in, options));
  Message message;
  if (options.stream) {
    StreamParser parser(mode, nullptr);
    parser.feed(completion), parser.finish();
    message = parser.message();
  } else message = parse_v32(completion, mode);
  Json calls = Json::array();
  for (const auto& call : message.tool_calls) calls.push_back({{"name", call.name}, {"arguments", call.arguments}});
  return {{"reasoning_content", message.reasoning_content}, {"content", message.content}, {"tool_calls", calls}};
}

void add_mode(CLI::App& command, MessageOptions& options) {
  command.add_option("--thinking-mode", options.mode, "Where a case does not say it")
      ->capture_default_str()
      ->check(CLI::IsMember({"chat", "thinking"}));
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
    auto tokenizer = read_tokenizer(options->tokenizer);
    each_case([&](const Json& in) -> Json {
      FULGUR_CHECK(in.contains("text") && in["text"].is_string(), "[tokenizer] expected a string \"text\", got none");
      return {{"ids", tokenizer.encode(in["text"].get<std::string>(), options->parse_special)}};
    });
  });

  auto* decoder = tokenizer_command(*command, "decode", "JSON Lines {id, ids} to {id, text}", *options);
  decoder->footer("Example:\n  echo '{\"id\": 1, \"ids\": [40, 41]}' | fulgur tokenizer decode --tokenizer tokenizer.json");
  decoder->callback([=] {
    auto tokenizer = read_tokenizer(options->tokenizer);
    each_case([&](const Json& in) -> Json {
      FULGUR_CHECK(in.contains("ids") && in["ids"].is_array(), "[tokenizer] expected an array \"ids\", got none");
      return {{"text", valid_utf8(tokenizer.decode(in["ids"].get<std::vector<int32_t>>()))}};
    });
  });
}

void add_encode(CLI::App& app, Common&) {
  auto options = std::make_shared<MessageOptions>();
  auto* command = app.add_subcommand("encode", "DeepSeek-V3.2's prompt of messages: JSON Lines {id, messages} to {id, prompt}");
  add_mode(*command, *options);
  command
      ->add_option("--retention", options->retention,
                   "Reasoning of earlier turns: paper drops it, api keeps that of turns with tool calls")
      ->capture_default_str()
      ->check(CLI::IsMember({"paper", "api"}));
  command->add_option("--tokenizer", options->tokenizer, "tokenizer.json or GGUF file: gives the prompt's ids too");
  command->footer("Example:\n  echo '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}]}' | fulgur encode");
  command->callback([=] {
    std::optional<Tokenizer> tokenizer;
    if (!options->tokenizer.empty()) tokenizer.emplace(read_tokenizer(options->tokenizer));
    each_case([&](const Json& in) { return encode_case(in, *options, tokenizer ? &*tokenizer : nullptr); });
  });
}

void add_parse(CLI::App& app, Common&) {
  auto options = std::make_shared<MessageOptions>();
  auto* command = app.add_subcommand(
      "parse", "What DeepSeek-V3.2 wrote: JSON Lines {id, completion} to {id, reasoning_content, content, tool_calls}");
  add_mode(*command, *options);
  command->add_flag("--stream", options->stream, "Read it as a server does, that is also where it is not well formed");
  command->footer("Example:\n  echo '{\"completion\": \"Hm.</think>Hello!<｜end▁of▁sentence｜>\"}' | fulgur parse");
  command->callback([=] { each_case([&](const Json& in) { return parse_case(in, *options); }); });
}

}  // namespace fulgur::cli
