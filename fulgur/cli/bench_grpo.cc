// fulgur bench grpo: a step of reinforcement learning by parts, at a fixed number of tokens: no tasks, no tools.
#include <ATen/Parallel.h>

#include <atomic>
#include <cstdio>

#include "fulgur/base/random.h"
#include "fulgur/base/threads.h"
#include "fulgur/cli/cli.h"
#include "fulgur/cli/limits.h"
#include "fulgur/cli/recipe.h"
#include "fulgur/model/cost.h"
#include "fulgur/rl/update.h"
#include "fulgur/train/optimizer.h"

namespace fulgur::cli {
namespace fs = std::filesystem;
namespace {

struct Options {
  std::string recipe, dtype = "f32";
  int64_t prompts = 16, group = 16, prompt_tokens = 128, max_tokens = 64, steps = 4;
};

// As many members as the step has, each of the same number of tokens.
std::vector<Member> draw(const Transformer& model, const RlConfig& rl, const Options& o, uint64_t seed) {
  RandomStream random(seed, "bench.grpo");
  int64_t count = o.prompts * o.group;
  std::vector<Member> members(count);
  for (int64_t p = 0; p < o.prompts; ++p) {
    std::vector<int32_t> prompt(o.prompt_tokens);
    for (auto& token : prompt) token = int32_t(random.below(uint64_t(model.config().vocab_size)));
    for (int64_t i = 0; i < o.group; ++i) members[p * o.group + i].segments = {Segment{.tokens = prompt}};
  }
  std::vector<std::atomic<int>> ended(count);
  Engine engine(model, engine_options(rl, model.config(), count));
  for (int64_t i = 0; i < count; ++i) {
    Request request{.prompt = members[i].segments[0].tokens, .max_tokens = o.max_tokens};
    request.sampling.seed = random.bits();
    engine.submit(std::move(request), [&, i](const Event& event) {
      auto& segment = members[i].segments[0];
      if (event.token) {
        segment.drawn.push_back(int64_t(segment.tokens.size())), segment.tokens.push_back(event.token->id);
        segment.log_prob.push_back(event.token->kept_log_prob), segment.kept_mass.push_back(1);
        segment.version.push_back(int64_t(seed)), segment.kept_offsets.push_back(0);
      }
      if (event.record) segment.record = *event.record;
      if (event.finish) ended[i] = 1, ended[i].notify_one();
    });
  }
  for (auto& one : ended) one.wait(0);
  return members;
}

std::vector<UpdatePart> parts_of(const std::vector<Member>& members, const Options& o) {
  std::vector<UpdatePart> parts(o.prompts);
  for (size_t i = 0; i < members.size(); ++i) {
    auto& part = parts[i / o.group];
    part.members.push_back(&members[i]), part.advantage.push_back(i % 2 ? 0.5 : -0.5);
  }
  return parts;
}

// FLOP of a step: the prompt is computed once for its group when drawn, and for each member when trained on; the head is for
// drawn tokens alone; backward is twice forward.
struct StepFlops {
  double rollout = 0, update = 0;
};
StepFlops step_flops(const ModelConfig& config, const Options& o) {
  double head = 2.0 * double(config.vocab_size) * double(config.hidden_size), prompt = 0, answer = 0;
  for (int64_t at = 0; at + 1 < o.prompt_tokens + o.max_tokens; ++at) {
    double body = token_cost(config, Form::sparse, at + 1, 4).flops - head;
    (at + 1 < o.prompt_tokens ? prompt : answer) += body;
  }
  answer += head * double(o.max_tokens);
  double forward = double(o.prompts) * (prompt + double(o.group) * answer);
  return {forward, 3 * forward};
}

void print_part(const char* name, const std::vector<Sample>& samples, double flops, double tokens, const char* unit) {
  std::vector<double> seconds, shares;
  for (const auto& s : samples) seconds.push_back(s.seconds), shares.push_back(s.limit / s.seconds);
  std::printf("%-10s %9.3f s  %9.0f %-22s %8.1f GFLOP/s  %4.0f %% of peak\n", name, median(seconds), tokens / median(seconds),
              unit, flops / median(seconds) / 1e9, 100 * median(shares));
}

void bench_grpo(const Options& o) {
  at::set_num_threads(threads());
  auto recipe = read_recipe(o.recipe.empty() ? resource("recipes/speedrun.toml") : fs::path(o.recipe));
  auto config = model_config(recipe);
  RlConfig rl = recipe.rl;
  rl.prompts = o.prompts, rl.group = o.group, rl.max_tokens = o.max_tokens, rl.dtype = o.dtype;
  rl.context = o.prompt_tokens + o.max_tokens, rl.cache_tokens = o.prompts * o.group * (rl.context + 64);
  Transformer model(config, init_weights(config, 1));
  Optimizer optimizer(model.weights(), optimiser_config(rl));
  ProcessGroup alone;
  Limits limits;
  auto flops = step_flops(config, o);
  double drawn = double(o.prompts * o.group * o.max_tokens);
  double rows = double(o.prompts) * double(o.prompt_tokens + o.group * (o.max_tokens - 1));
  std::vector<Sample> rollouts, updates;
  Match match;
  for (int64_t step = 0; step <= o.steps && !g_stop; ++step) {
    std::vector<Member> members;
    auto rollout =
        sample(limits, flops.rollout, 0, [&] { return time_once([&] { members = draw(model, rl, o, uint64_t(step)); }); });
    auto update = sample(limits, flops.update, 0, [&] {
      return time_once([&] {
        match.add(accumulate_policy_gradients(model, rl, parts_of(members, o), step, nullptr, alone).match);
        optimizer.step(step, optimizer.norms());
      });
    });
    if (step > 0) rollouts.push_back(rollout), updates.push_back(update);  // the first step warms up
  }
  std::printf("%lld prompts of %lld tokens, %lld answers of %lld tokens each, %s, %d threads; mismatch %g of %.0f tokens\n",
              static_cast<long long>(o.prompts), static_cast<long long>(o.prompt_tokens), static_cast<long long>(o.group),
              static_cast<long long>(o.max_tokens), o.dtype.c_str(), threads(), match.mismatch, match.tokens);
  print_part("rollouts", rollouts, flops.rollout, drawn, "drawn tokens/s");
  print_part("update", updates, flops.update, rows, "rows/s");
  auto label = cat(o.prompts, "x", o.group, ", ", o.prompt_tokens, "+", o.max_tokens);
  finish_bench(limits,
               {result_json("grpo rollouts", label, rollouts, flops.rollout, 0),
                result_json("grpo update", label, updates, flops.update, 0)},
               Json::array(), {{"model", config_json(config)}, {"mismatch", match.mismatch}});
}

}  // namespace

void add_bench_grpo(CLI::App& bench) {
  auto o = std::make_shared<Options>();
  auto* command = bench.add_subcommand("grpo", "A step of reinforcement learning by parts, at a fixed number of tokens");
  command->add_option("--recipe", o->recipe, "Recipe (default: recipes/speedrun.toml)");
  command->add_option("--dtype", o->dtype, "f32 or bf16")->capture_default_str()->check(CLI::IsMember({"f32", "bf16"}));
  auto number = [&](const char* flag, int64_t& field, const char* text) {
    command->add_option(flag, field, text)->capture_default_str()->check(CLI::Range(1, 100000));
  };
  number("--prompts", o->prompts, "Prompts of a step"), number("--group", o->group, "Answers to each");
  number("--prompt-tokens", o->prompt_tokens, "Tokens of a prompt"), number("--max-tokens", o->max_tokens, "Tokens of an answer");
  number("--steps", o->steps, "Timed steps, after one that warms up");
  command->footer("Example:\n  fulgur bench grpo --prompts 8 --group 8\nBeside it: bench/plain_grpo.py, bench/trl_grpo.py");
  command->callback([=] { bench_grpo(*o); });
}

}  // namespace fulgur::cli
