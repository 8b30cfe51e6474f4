// A conversation in the terminal.
#include "fulgur/text/chat.h"

#include <editline/readline.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <iostream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/python_json.h"
#include "fulgur/cli/cli.h"
#include "fulgur/engine/engine.h"
#include "fulgur/text/v32_parse.h"
#include "fulgur/train/checkpoint.h"

namespace fulgur::cli {
namespace {

struct Options {
  std::string model, system, dtype = "bf16", weights_format = "plain", cache = "plain";
  Request request;
  int64_t context = 8192;
  bool thinking = true, shell = false;
};

constexpr const char* kHelp =
    "/system TEXT   who the assistant is; begins anew\n"
    "/clear         begin anew\n"
    "/retry         the last question once more\n"
    "/think on|off  whether it reasons first (DeepSeek-V3.2)\n"
    "/save FILE     the conversation as JSON\n"
    "/quit          or Ctrl-D\n"
    "Ctrl-C stops an answer.\n";

const Json kShell = {
    {"name", "shell"},
    {"description", "Runs a shell command on the user's machine, if the user agrees, and gives what it prints."},
    {"parameters", {{"type", "object"}, {"properties", {{"command", {{"type", "string"}}}}}, {"required", {"command"}}}}};

void stop_answer(int signal) { g_stop = signal; }

// What a command prints, the last 8 KB of it.
std::string output_of(const std::string& command) {
  FILE* pipe = popen(("( " + command + "\n) 2>&1").c_str(), "r");
  FULGUR_CHECK(pipe, "[chat] expected to start a shell, got none");
  std::string out;
  char part[4096];
  while (size_t size = fread(part, 1, sizeof part, pipe)) {
    out.append(part, size);
    if (out.size() > 1 << 16) out.erase(0, out.size() - (1 << 13));
  }
  int status = pclose(pipe);
  if (out.size() > 1 << 13) out.erase(0, out.size() - (1 << 13));
  return valid_utf8(out) +
         (status == 0 ? "" : cat("\n(exit code ", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), ")"));
}

class Chat {
 public:
  Chat(const Options& o, const ModelFiles& files, Transformer model)
      : o_(o),
        tokenizer_(files.vocabulary()),
        format_(tokenizer_, files.chat_template()),
        engine_(std::move(model), engine_options(files.config())) {
    if (o_.shell && !format_.is_v32())
      throw InputError(cat("[chat] expected a model that calls tools for --shell, got ", format_.name()));
    begin();
  }

  const char* format() const { return format_.name(); }
  bool colours() const { return isatty(1); }

  // False: the user leaves.
  bool hear(const std::string& line) {
    if (line.empty()) return true;
    if (line[0] == '/') return command(line);
    messages_.push_back({Role::user, line});
    answer();
    return true;
  }

  Json saved() const { return {{"messages", json_of(messages_)}}; }

 private:
  EngineOptions engine_options(const ModelConfig& config) const {
    EngineOptions options{.dense = !config.has_indexer(), .bf16 = o_.dtype == "bf16"};
    options.weights = weight_format(o_.weights_format), options.cache = cache_format(o_.cache);
    options.draft = config.num_nextn_predict_layers > 0;
    options.max_context = o_.context;
    return options;
  }

  void begin() {
    messages_.clear();
    if (o_.system.empty() && !o_.shell) return;
    Message system{Role::system, o_.system};
    if (o_.shell) system.tools.push_back(kShell);
    messages_.push_back(system);
  }

  bool command(const std::string& line) {
    auto space = line.find(' ');
    std::string name = line.substr(1, space == std::string::npos ? space : space - 1),
                rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "quit" || name == "exit") return false;
    if (name == "clear") begin();
    else if (name == "system") o_.system = rest, begin();
    else if (name == "think") o_.thinking = rest != "off";
    else if (name == "save" && !rest.empty()) write_file_atomic(rest, dump_python_json(saved()) + "\n");
    else if (name == "retry") {
      while (!messages_.empty() && messages_.back().role != Role::user) messages_.pop_back();
      ++o_.request.sampling.seed;
      if (!messages_.empty()) answer();
    } else std::fputs(kHelp, stdout);
    return true;
  }

  // The assistant's turn: with the calls it makes, and what they gave.
  void answer() {
    for (int calls = 0; calls < 20; ++calls) {
      size_t before = messages_.size();
      messages_.push_back(said());
      if (messages_.back().tool_calls.empty() || g_stop) break;
      for (const auto& call : std::vector<ToolCall>(messages_[before].tool_calls))
        messages_.push_back({Role::tool, result_of(call)});
    }
    g_stop = 0;
  }

  Message said() {
    auto mode = o_.thinking ? ThinkingMode::thinking : ThinkingMode::chat;
    Request request = o_.request;
    request.prompt = tokenizer_.encode(format_.encode(messages_, mode, Retention::paper));
    request.stop_tokens = format_.stop_tokens();
    StreamParser parser(format_.is_v32() ? mode : ThinkingMode::chat, [&](const Delta& delta) { show(delta); });
    auto done = complete(engine_, request, [&](const Event& event) {
      if (g_stop) engine_.cancel(event.request);
      if (event.token && (format_.is_v32() || event.token->id != request.stop_tokens[0]))
        parser.feed(tokenizer_.decode_drawn(event.token->id));
    });
    parser.finish();
    shown_ = Delta::content;
    std::printf("%s\n", colours() ? "\033[0m" : "");
    if (done.finish == Finish::failed) std::printf("%s\n", done.error.c_str());
    if (done.finish == Finish::length) std::printf("(the answer's length, or the context, is at its end: /clear begins anew)\n");
    auto message = parser.message();
    if (g_stop) message.tool_calls.clear();
    return message;
  }

  void show(const Delta& delta) {
    if (delta.kind != shown_) {
      if (delta.kind == Delta::content && shown_ == Delta::reasoning) std::printf("\n");
      if (colours())
        std::fputs(delta.kind == Delta::reasoning ? "\033[2m" : delta.kind == Delta::content ? "\033[0m" : "\033[36m", stdout);
    }
    if (delta.kind == Delta::call) std::printf("\n%s ", delta.text.c_str());
    else std::fputs(delta.text.c_str(), stdout);
    std::fflush(stdout);
    shown_ = delta.kind;
  }

  std::string result_of(const ToolCall& call) {
    try {
      Json arguments = parse_python_json(call.arguments, call.name);
      FULGUR_CHECK(
          call.name == "shell" && arguments.is_object() && arguments.contains("command") && arguments["command"].is_string(),
          "[chat] expected a call of shell with a command, got ", call.name, " ", call.arguments.substr(0, 200));
      auto command = arguments["command"].get<std::string>();
      std::printf("run `%s`? [y/N] ", command.c_str());
      std::fflush(stdout);
      std::string reply;
      if (!std::getline(std::cin, reply) || (reply != "y" && reply != "yes")) return "The user does not allow this command.";
      auto printed = output_of(command);
      std::printf("%s\n", printed.c_str());
      return printed;
    } catch (const InputError& error) {
      return error.what();
    }
  }

  Options o_;
  Tokenizer tokenizer_;
  ChatFormat format_;
  Engine engine_;
  std::vector<Message> messages_;
  Delta::Kind shown_ = Delta::content;
};

std::filesystem::path history_path() {
  const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
  return (state ? std::filesystem::path(state) : std::filesystem::path(home ? home : ".") / ".local/state") / "fulgur/history";
}

// A line with editing and history from a terminal, as it stands from anything else.
bool next_line(std::string& line) {
  if (!isatty(0)) return bool(std::getline(std::cin, line));
  char* typed = readline("> ");
  if (!typed) return false;
  line = typed;
  if (!line.empty()) add_history(typed);
  std::free(typed);
  return true;
}

void chat_command(Options o, const CLI::App& command, Common& common) {
  ModelFiles files(find_model(o.model));
  auto model = files.open();
  follow_packing(command, model.weights().packing, nullptr, o.dtype, o.weights_format);
  Chat chat(o, files, std::move(model));
  struct sigaction action = {};
  action.sa_handler = stop_answer;
  sigaction(SIGINT, &action, nullptr);
  auto history = history_path();
  if (isatty(0)) {
    std::error_code ignored;
    std::filesystem::create_directories(history.parent_path(), ignored);
    using_history(), read_history(history.c_str()), stifle_history(2000);
    std::printf("%s, %s. /help says what else you can do.\n", o.model.c_str(), chat.format());
  }
  for (std::string line; next_line(line); g_stop = 0) {
    try {
      if (!chat.hear(line)) break;
    } catch (const InputError& error) {
      std::fprintf(stderr, "%s\n", error.what());
      if (!isatty(0)) common.exit_code = 1;
    }
  }
  if (isatty(0)) write_history(history.c_str());
}

}  // namespace

void add_chat(CLI::App& app, Common& common) {
  auto o = std::make_shared<Options>();
  o->request.max_tokens = 2048;
  o->request.sampling = {.temperature = 0.7, .top_p = 0.95, .seed = 1};
  auto* command = app.add_subcommand("chat", "A conversation in the terminal");
  command->add_option("--model", o->model, "Model folder, run directory or GGUF file")->required();
  command->add_option("--system", o->system, "Who the assistant is");
  command->add_flag("--shell", o->shell, "The model may ask to run shell commands, each of which you are asked about");
  command->add_flag("!--no-thinking", o->thinking, "Answers without reasoning first");
  add_sampling(*command, o->request);
  command->add_option("--context", o->context, "Tokens of the conversation at most")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->add_option("--dtype", o->dtype, "Activations")->capture_default_str()->check(CLI::IsMember({"f32", "bf16"}));
  add_formats(*command, o->weights_format, o->cache);
  command->footer("Example:\n  fulgur chat --model SmolLM2-135M-Instruct.Q4_1.gguf");
  command->callback([=, &common] { chat_command(*o, *command, common); });
}

}  // namespace fulgur::cli
