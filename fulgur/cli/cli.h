// The commands of the program `fulgur`, one function each. They parse flags, call the rooms below, print.
#pragma once

#include <c10/core/ScalarType.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <filesystem>
#include <optional>
#include <string>

#include "fulgur/base/json.h"

namespace fulgur {
struct Request;
struct Packing;
class ModelFiles;
enum class Split;
}  // namespace fulgur

namespace fulgur::cli {

// The signal (Ctrl-C or SIGTERM) that asked for an end, or 0; long commands look at it, save and return stop_code(). A
// second signal ends at once.
extern std::atomic<int> g_stop;
int stop_code();  // 128 + the signal, as shells have it: 130, 143

// What every command may read.
struct Common {
  bool json = false;
  int threads = 0;  // as asked for; 0: not
  int exit_code = 0;
};

void add_speedrun(CLI::App& app, Common& common);
void add_tokenizer(CLI::App& app, Common& common);
void add_encode(CLI::App& app, Common& common);
void add_parse(CLI::App& app, Common& common);
void add_data(CLI::App& app, Common& common);
void add_tasks(CLI::App& app, Common& common);
void add_train(CLI::App& app, Common& common);
void add_forward(CLI::App& app, Common& common);
void add_generate(CLI::App& app, Common& common);
void add_chat(CLI::App& app, Common& common);
void add_convert(CLI::App& app, Common& common);
void add_adapt(CLI::App& app, Common& common);
void add_inspect(CLI::App& app, Common& common);
void add_eval(CLI::App& app, Common& common);
void add_eval_needles(CLI::App& eval, Common& common);
void add_report(CLI::App& app, Common& common);
void add_bench(CLI::App& app, Common& common);
void add_bench_model(CLI::App& bench);
void add_bench_engine(CLI::App& bench);
void add_bench_text(CLI::App& bench);
void add_bench_kl(CLI::App& bench);
void add_bench_grpo(CLI::App& bench);

// A model's tokenizer, and how it renders a conversation, into another model's folder.
void copy_tokenizer(const ModelFiles& files, const std::filesystem::path& model, const std::filesystem::path& folder);

// What --dtype names: f32 or bf16.
at::ScalarType type_of(const std::string& dtype);

// Flags of how an answer's tokens are drawn, and how many.
void add_sampling(CLI::App& command, Request& request);

// Flags --weights-format and --cache, names of ops/formats.h.
void add_formats(CLI::App& command, std::string& weights, std::string& cache);

// A packed model runs as it was packed: what of --attention, --dtype and --weights-format `command` was given must say the same
// (UsageError), and the others become it. `attention` is null where the command has no such flag.
void follow_packing(const CLI::App& command, const std::optional<Packing>& packing, std::string* attention, std::string& dtype,
                    std::string& format);

// "3M", "1.5k", "4096" -> a number; throws UsageError naming `flag`.
double parse_count(const std::string& text, const std::string& flag);

// A file or folder that came with the program: recipes/..., web/...
std::filesystem::path resource(const std::string& relative);

// JSON Lines for `fulgur train sft`.
struct Demonstrations;
std::string demonstrations(const Demonstrations& of, Split split, uint64_t seed);

// Host, versions, instruction set: what a run records about where it ran.
Json machine_json();

}  // namespace fulgur::cli
