#include <commit.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/model/weights.h"
#include "fulgur/ops/arena.h"
#include "fulgur/ops/formats.h"
#include "fulgur/ops/isa.h"
#include "fulgur/train/trainer.h"

namespace fulgur::cli {

std::atomic<int> g_stop{0};

// Another rank's signal stops this one too.
int stop_code() { return 128 + (g_stop ? g_stop.load() : SIGINT); }

at::ScalarType type_of(const std::string& dtype) { return dtype == "bf16" ? at::kBFloat16 : at::kFloat; }

void add_formats(CLI::App& command, std::string& weights, std::string& cache) {
  command.add_option("--weights-format", weights, "How matrices are stored; plain: in the activations' type")
      ->capture_default_str()
      ->check(CLI::IsMember(std::vector<std::string>(kWeightFormats.begin(), kWeightFormats.end())));
  command
      .add_option("--cache", cache,
                  "How keys are stored: fp8 (656 and 132 bytes at the published sizes), int8 (indexer keys), both")
      ->capture_default_str()
      ->check(CLI::IsMember(std::vector<std::string>(kCacheFormats.begin(), kCacheFormats.end())));
}

void follow_packing(const CLI::App& command, const std::optional<Packing>& packing, std::string* attention, std::string& dtype,
                    std::string& format) {
  if (!packing) return;
  auto follow = [&](const char* flag, std::string& value, const std::string& packed) {
    if (command.count(flag) > 0 && value != packed)
      throw UsageError(cat("[usage] ", flag, ": expected ", packed, ", as this model was packed, got ", value));
    value = packed;
  };
  if (attention) follow("--attention", *attention, packing->absorbed ? "sparse" : "dense");
  follow("--dtype", dtype, packing->type == at::kBFloat16 ? "bf16" : "f32");
  follow("--weights-format", format, kWeightFormats[size_t(packing->format)]);
}

double parse_count(const std::string& text, const std::string& flag) {
  char* end = nullptr;
  double value = std::strtod(text.c_str(), &end);
  std::string unit = end;
  double scale = unit.empty() ? 1 : unit == "k" ? 1e3 : unit == "M" ? 1e6 : unit == "G" || unit == "B" ? 1e9 : 0;
  if (end == text.c_str() || scale == 0)
    throw UsageError(cat("[usage] ", flag, ": expected a number such as 4096, 200k or 3M, got ", text));
  return value * scale;
}

std::filesystem::path resource(const std::string& relative) {
  auto installed = std::filesystem::read_symlink("/proc/self/exe").parent_path().parent_path() / "share/fulgur" / relative;
  if (std::filesystem::exists(installed)) return installed;
  return std::filesystem::path(FULGUR_SOURCE_DIR) / relative;
}

Json machine_json() {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  std::string cpu = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("model name", 0) == 0) {
      cpu = line.substr(line.find(':') + 2);
      break;
    }
  return {{"host", host},
          {"cpu", cpu},
          {"threads", threads()},
          {"numeric_path", numeric_path()},
          {"fulgur", FULGUR_VERSION},
          {"commit", FULGUR_COMMIT},
          {"compiler", __VERSION__}};
}

namespace {

void on_signal(int signal) {
  if (g_stop.exchange(signal)) _exit(128 + signal);
  static const char text[] = "\nfulgur: stopping behind this step (once more: at once)\n";
  [[maybe_unused]] auto written = write(2, text, sizeof text - 1);
}

int report_error(const std::string& what, int code) {
  std::fprintf(stderr, "%s\n", what.c_str());
  return code;
}

}  // namespace

int run(int argc, char** argv) {
  CLI::App app("DeepSeek-V3.2 as software: trains, evaluates and runs models with DeepSeek Sparse Attention.", "fulgur");
  Common common;
  std::string isa_name;
  app.set_version_flag("--version", std::string("fulgur " FULGUR_VERSION));
  app.add_flag("--json", common.json, "Print results as one JSON object");
  app.add_option("--threads", common.threads, "Threads (default: the cores this process may use)")->check(CLI::Range(1, 1024));
  app.add_option("--isa", isa_name, "Instruction set: portable, avx2, avx512, avx512bf16 (default: the best this CPU has)");
  app.require_subcommand(1);
  app.fallthrough();
  app.footer("Example:\n  fulgur speedrun --out runs/first\nEvery command has --help with an example.");
  app.parse_complete_callback([&] {
    if (common.threads > 0) set_threads(common.threads);
    if (!isa_name.empty()) set_isa(isa_name);
  });
  for (auto add : {add_speedrun, add_tokenizer, add_encode, add_parse, add_data, add_tasks, add_train, add_forward, add_generate,
                   add_chat, add_convert, add_adapt, add_inspect, add_eval, add_report, add_bench})
    add(app, common);

  install_arena();
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN);  // a quota on file sizes is an error of write(), like a full disk
  try {
    app.parse(argc, argv);
    return common.exit_code;
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return report_error(cat("[usage] ", error.what(), "\n  hint: fulgur --help, or fulgur COMMAND --help"), 2);
  } catch (const UsageError& error) {
    return report_error(error.what(), 2);
  } catch (const InputError& error) {
    return report_error(error.what(), 1);
  } catch (const std::bad_alloc&) {
    return report_error("[memory] expected enough memory, got none left\n  hint: a smaller batch, context or model", 1);
  } catch (const std::exception& error) {
    return report_error(cat("[internal] ", error.what()), 1);
  }
}

}  // namespace fulgur::cli

// OpenMP threads spin for milliseconds at every barrier, which is ruin where another process shares the cores: two
// trainings at once on two cores ran 13 times slower each. The limit is read when libgomp loads, so it takes a new start.
int main(int argc, char** argv) {
  if (!getenv("GOMP_SPINCOUNT") && !getenv("OMP_WAIT_POLICY")) {
    setenv("GOMP_SPINCOUNT", "5000", 1);
    setenv("TORCH_CPP_LOG_LEVEL", "FATAL", 0);  // c10d's warnings and stacks: errors are said in our own words
    execv("/proc/self/exe", argv);              // on failure: go on as we are
  }
  return fulgur::cli::run(argc, argv);
}
