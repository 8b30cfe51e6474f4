// The engine with company: tokens/s of a batch that shares a prefix, and how long a short request waits while a long prompt is
// read.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/engine/engine.h"
#include "fulgur/model/cost.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/isa.h"

namespace fulgur::cli {
namespace {
using Clock = std::chrono::steady_clock;

struct Options {
  std::string shape = "ds32-353m";
  std::vector<int64_t> batches{1, 4, 16};
  int64_t prefix = 8192, tokens = 48, prompt = 100000;
  double seconds = 120;
};
constexpr int64_t kChunk = 256, kShort = 16;  // rows of a step; tokens of a short request

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<int32_t> random_text(const ModelConfig& config, int64_t length, uint64_t seed) {
  RandomStream random(seed, "bench.engine");
  std::vector<int32_t> tokens(length);
  for (auto& token : tokens) token = int32_t(random.below(config.vocab_size));
  return tokens;
}

// Requests at once, between the moment when each has its first token and the end of the first of them.
class Together {
 public:
  explicit Together(Engine& engine) : engine_(engine) {}

  void submit(Request request) {
    ++open_, ++waiting_;
    engine_.submit(std::move(request), [this, first = true](const Event& event) mutable {
      std::lock_guard lock(mutex_);
      if (event.token) {
        if (measuring_) ++tokens_;
        if (std::exchange(first, false) && --waiting_ == 0) measuring_ = true, start_ = Clock::now();
      }
      if (!event.finish) return;
      if (std::exchange(measuring_, false)) seconds_ = since(start_);
      if (--open_ == 0) ended_.notify_one();
    });
  }
  double tokens_per_second() {
    std::unique_lock lock(mutex_);
    ended_.wait(lock, [&] { return open_ == 0; });
    return double(tokens_) / seconds_;
  }

 private:
  Engine& engine_;
  std::mutex mutex_;
  std::condition_variable ended_;
  int64_t open_ = 0, waiting_ = 0, tokens_ = 0;
  bool measuring_ = false;
  Clock::time_point start_;
  double seconds_ = 0;
};

// Rows of `batch` texts in one step, each behind `before` tokens: of a step of one text, every row has logits of its own.
StepCost batch_cost(const ModelConfig& config, int64_t before, int64_t batch) {
  auto cost = step_cost(config, Form::sparse, before, batch, stored_bytes(config, Form::sparse, /*bytes=*/2));
  cost.flops += 2.0 * double((batch - 1) * config.vocab_size * config.hidden_size);
  return cost;
}

Json measure_batch(Engine& engine, const ModelConfig& config, const Options& o, int64_t batch, Limits& limits) {
  auto prefix = random_text(config, o.prefix, 1);
  auto cost = batch_cost(config, o.prefix + o.tokens / 2, batch);
  auto one = [&](uint64_t turn) {
    release_workers();  // of the peaks
    Together together(engine);
    for (int64_t i = 0; i < batch; ++i) {
      Request request{.prompt = prefix, .max_tokens = o.tokens, .sampling = {.seed = turn * 1000 + uint64_t(i)}};
      request.prompt.push_back(int32_t((turn * 37 + uint64_t(i)) % uint64_t(config.vocab_size)));
      together.submit(std::move(request));
    }
    return double(batch) / together.tokens_per_second();  // seconds of a step
  };
  std::vector<Sample> samples;
  for (uint64_t turn = 0; turn < 3; ++turn) samples.push_back(sample(limits, cost.flops, cost.bytes, [&] { return one(turn); }));
  Json r = result_json("batch", cat(batch, " texts behind ", o.prefix, " shared tokens"), samples, cost.flops, cost.bytes);
  r["batch"] = batch, r["tokens_per_second"] = double(batch) / r["seconds"].get<double>();
  std::printf("%6lld %12.1f %14.1f %14.2f %12.1f %8.0f %%\n", static_cast<long long>(batch), r["tokens_per_second"].get<double>(),
              r["seconds"].get<double>() * 1e3, cost.flops / double(batch) / 1e6, cost.bytes / double(batch) / 1e6,
              100 * r["share"].get<double>());
  std::fflush(stdout);
  return r;
}

// Seconds of a step while nothing but the prompt is read; 0: it has come to its end.
double chunk_seconds(const Engine& engine, const std::atomic<bool>& ended) {
  auto next_step = [&] {
    for (int64_t steps = engine.statistics().steps; engine.statistics().steps == steps && !ended;)
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    return Clock::now();
  };
  auto start = next_step();
  double seconds = std::chrono::duration<double>(next_step() - start).count();
  return ended ? 0 : seconds;
}

Json measure_first_token(Engine& engine, const ModelConfig& config, const Options& o) {
  release_workers();
  std::atomic<bool> ended = false;
  uint64_t id = engine.submit({.prompt = random_text(config, o.prompt, 2), .max_tokens = 1}, [&](const Event& event) {
    if (event.finish) ended = true;
  });
  std::printf("\na request of %lld tokens while a prompt of %lld is read, %lld rows a step\n%12s %12s %12s %8s %8s\n",
              static_cast<long long>(kShort), static_cast<long long>(o.prompt), static_cast<long long>(kChunk), "tokens read",
              "chunk ms", "first ms", "chunks", "steps");
  Json probes = Json::array();
  RandomStream random(3, "bench.engine.first");
  double most = 0;
  int64_t rows = engine.statistics().rows;
  for (auto start = Clock::now(); !ended && (since(start) < o.seconds || probes.empty());) {
    double chunk = chunk_seconds(engine, ended);
    if (chunk == 0) break;
    std::this_thread::sleep_for(std::chrono::duration<double>(chunk * double(random.below(1000)) / 1000));
    int64_t read = engine.statistics().rows - rows;
    auto submitted = Clock::now();
    double first = 0;
    int64_t before = engine.statistics().steps, steps = 0;  // one is under way; the last is not counted yet when it tells
    auto request = Request{.prompt = random_text(config, kShort, 100 + uint64_t(read)), .max_tokens = 1};
    complete(engine, std::move(request), [&](const Event& event) {
      if (event.token) first = since(submitted), steps = engine.statistics().steps + 1 - before;
    });
    double chunks = first / std::max(chunk, chunk_seconds(engine, ended));  // of before and behind: the machine is shared
    if (ended) break;
    most = std::max(most, chunks);
    probes.push_back(
        {{"read", read}, {"chunk_seconds", chunk}, {"first_token_seconds", first}, {"chunks", chunks}, {"steps", steps}});
    std::printf("%12lld %12.0f %12.0f %8.2f %8lld\n", static_cast<long long>(read), chunk * 1e3, first * 1e3, chunks,
                static_cast<long long>(steps));
    std::fflush(stdout);
  }
  engine.cancel(id);
  while (!ended) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::printf("most: %.2f chunks\n", most);
  return {{"prompt", o.prompt}, {"most_chunks", most}, {"probes", probes}};
}

void bench_engine(const Options& o) {
  at::set_num_threads(threads());
  auto config = read_config(resource(cat("recipes/shapes/", o.shape, ".json")));
  int64_t longest = std::max(o.prompt, o.prefix + o.tokens) + 64;
  FULGUR_CHECK(longest <= config.max_position_embeddings, "[bench] expected texts of at most ", config.max_position_embeddings,
               " tokens, got ", longest);
  EngineOptions options{.bf16 = true, .max_context = longest, .chunk = kChunk};
  int64_t most = *std::max_element(o.batches.begin(), o.batches.end());
  int64_t tokens = longest + o.prefix + most * (o.tokens + 128);
  options.cache_bytes = pages_for(tokens) * Cache(config, Attention::sparse, at::kBFloat16, 1).bytes();
  Engine engine(Transformer(config, init_weights(config, 1)), options);
  Limits limits;
  std::printf("peaks: %.0f GFLOP/s (best large GEMM), %.1f GB/s (reading 2 GB), %d threads, %s\n", limits.flops() / 1e9,
              limits.bandwidth() / 1e9, threads(), isa_name(isa()));
  complete(engine, {.prompt = random_text(config, o.prefix, 1), .max_tokens = 1});
  std::printf("texts behind %lld shared tokens, %lld tokens each\n%6s %12s %14s %14s %12s %10s\n",
              static_cast<long long>(o.prefix), static_cast<long long>(o.tokens), "batch", "tokens/s", "ms a step",
              "MFLOP a token", "MB a token", "of limit");
  Json results = Json::array();
  for (int64_t batch : o.batches) results.push_back(measure_batch(engine, config, o, batch, limits));
  Json first = o.prompt > 0 ? measure_first_token(engine, config, o) : Json();
  finish_bench(limits, results, Json::array(), {{"first_token", first}});
}

}  // namespace

void add_bench_engine(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("engine", "Batches that share a prefix; a short request beside a long prompt");
  command->add_option("--shape", o->shape, "Model: recipes/shapes/NAME.json")
      ->capture_default_str()
      ->check(CLI::IsMember({"ds32-353m", "v32-layer"}));
  command->add_option("--batch", o->batches, "Texts at once")->capture_default_str()->check(CLI::Range(1, 64));
  command->add_option("--prefix", o->prefix, "Tokens they share")->capture_default_str()->check(CLI::PositiveNumber);
  command->add_option("--tokens", o->tokens, "Tokens each generates")->capture_default_str()->check(CLI::Range(8, 100000));
  command->add_option("--prompt", o->prompt, "Tokens of the long prompt; 0: none")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command->add_option("--seconds", o->seconds, "Time for the long prompt, which is cancelled then")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  command->footer("Example:\n  fulgur bench engine --batch 1 4 16 --prompt 100000 --threads 2");
  command->callback([=] { bench_engine(*o); });
}

}  // namespace fulgur::cli
