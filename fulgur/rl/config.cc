#include "fulgur/rl/config.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/model/transformer.h"
#include "fulgur/tasks/prompt_form.h"

namespace fulgur {

bool rl_changes_result(const std::string& key) {
  static const std::set<std::string> watching{"cache_tokens", "exact",      "checkpoint_every", "keep_last",
                                              "keep_batches", "eval_every", "eval_tasks",       "hang_seconds"};
  return !watching.contains(key);
}

void validate(const RlConfig& c) {
  auto positive = [](const char* key, double value) {
    FULGUR_CHECK(value > 0 && std::isfinite(value), "[rl] ", key, ": expected a positive number, got ", value);
  };
  auto not_negative = [](const char* key, double value) {
    FULGUR_CHECK(value >= 0 && std::isfinite(value), "[rl] ", key, ": expected 0 or more, got ", value);
  };
  positive("steps", double(c.steps)), positive("prompts", double(c.prompts)), positive("updates", double(c.updates));
  positive("context", double(c.context)), positive("lr", c.lr), positive("indexer_lr", c.indexer_lr);
  positive("clip", c.clip), positive("eps", c.eps), positive("checkpoint_every", double(c.checkpoint_every));
  positive("keep_last", double(c.keep_last)), not_negative("weight_decay", c.weight_decay);
  not_negative("indexer_kl", c.indexer_kl), not_negative("length_slope", c.length_slope);
  not_negative("length_budget", double(c.length_budget)), not_negative("language", c.language);
  not_negative("hang_seconds", c.hang_seconds), not_negative("relative_length", c.relative_length);
  positive("reward_seconds", c.reward_seconds);
  FULGUR_CHECK(c.group >= 2, "[rl] group: expected 2 attempts or more, got ", c.group);
  FULGUR_CHECK(c.prompts % c.updates == 0, "[rl] updates: expected a divisor of prompts ", c.prompts, ", got ", c.updates);
  FULGUR_CHECK(c.round_tokens == 0 || c.staleness > 1, "[rl] round_tokens: expected a staleness of 2 or more, got ", c.staleness,
               "\n  hint: an episode that goes on behind a swap of weights is trained on a step later at least");
  FULGUR_CHECK(c.resample == 0 || (c.staleness == 0 && c.drop_equal && c.replay.empty()),
               "[rl] resample: expected staleness 0, drop_equal and no replay, got others");
  FULGUR_CHECK(c.normalise == "sequence" || c.normalise == "token" || c.normalise == "constant",
               "[rl] normalise: expected sequence, token or constant, got ", c.normalise);
  FULGUR_CHECK(c.dtype == "f32" || c.dtype == "bf16", "[rl] dtype: expected f32 or bf16, got ", c.dtype);
  bool plain = c.sampler_weights == "plain" && c.sampler_cache == "plain";
  FULGUR_CHECK(plain || !c.exact, "[rl] exact: expected false with a sampler in ", c.sampler_weights, " weights and ",
               c.sampler_cache, " keys, which differ from the trainer's, got true");
  bool filters = c.top_p < 1 || c.min_p > 0 || c.top_k > 0 || c.grammar;
  FULGUR_CHECK(c.keep_sampling_mask || !filters || !c.exact,
               "[rl] exact: expected false where the sampler keeps few tokens and training counts all, got true");
  FULGUR_CHECK(prompt_forms(c.form).size() == 1, "[rl] form: expected one, got ", c.form);
  validate(c.objective), validate(rollout_options(c)), task_kinds(c.tasks);
  schedule_share(optimiser_config(c), 0);
}

std::vector<TaskKind> task_kinds(const std::string& tasks) {
  std::vector<TaskKind> out;
  for (size_t at = 0; at <= tasks.size();) {
    size_t comma = std::min(tasks.find(',', at), tasks.size());
    std::string item = tasks.substr(at, comma - at), name = item.substr(0, item.find(':'));
    TaskKind kind{&family(name), 1, 1};
    if (name.size() < item.size()) {
      char* end = nullptr;
      kind.difficulty = kind.hardest = std::strtoll(item.c_str() + name.size() + 1, &end, 10);
      if (*end == '-') kind.hardest = std::strtoll(end + 1, &end, 10);
      FULGUR_CHECK(*end == '\0' && kind.difficulty > 0 && kind.hardest >= kind.difficulty,
                   "[rl] tasks: expected name:difficulty or name:low-high, got ", item);
    }
    FULGUR_CHECK(kind.hardest <= kind.family->hardest(), "[rl] tasks: expected a difficulty of ", name, " up to ",
                 kind.family->hardest(), ", got ", kind.hardest);
    out.push_back(kind);
    at = comma + 1;
  }
  return out;
}

Task draw_task(const RlConfig& config, const TaskKind& kind, Split split, int64_t difficulty, uint64_t seed) {
  return in_form(prompt_forms(config.form).at(0), kind.family->task(split, difficulty, seed));
}

StageConfig optimiser_config(const RlConfig& c) {
  StageConfig out{.kind = StageKind::rl};
  out.tokens = c.steps * c.updates, out.batch_tokens = 1;  // a step is an update
  out.lr = c.lr, out.indexer_lr = c.indexer_lr, out.schedule = c.schedule, out.warmup_steps = c.warmup_steps;
  out.final_lr = c.final_lr, out.decay_share = c.decay_share, out.beta1 = c.beta1, out.beta2 = c.beta2, out.eps = c.eps;
  out.weight_decay = c.weight_decay, out.clip = c.clip, out.dtype = c.dtype, out.seed = c.seed;
  return out;
}

EngineOptions engine_options(const RlConfig& c, const ModelConfig& model, int64_t attempts) {
  EngineOptions out{.bf16 = c.dtype == "bf16",
                    .weights = weight_format(c.sampler_weights),
                    .cache = cache_format(c.sampler_cache),
                    .record = true,
                    .max_context = c.context,
                    .max_batch = attempts,
                    .max_waiting = attempts};
  Cache page(model, Attention::sparse, out.bf16 ? at::kBFloat16 : at::kFloat, 1, {.choices = true, .format = out.cache});
  int64_t all = pages_for(c.context) * attempts, held = std::max(pages_for(c.context), pages_for(c.cache_tokens));
  out.cache_bytes = page.bytes() * std::min(all, held);
  return out;
}

RolloutOptions rollout_options(const RlConfig& c, const Tokenizer* tokenizer) {
  auto mode = mode_of(prompt_forms(c.form).at(0), thinking_mode(c.mode));
  return {.sampling = {.temperature = c.temperature, .top_k = c.top_k, .top_p = c.top_p, .min_p = c.min_p},
          .max_tokens = c.max_tokens,
          .max_answers = c.max_answers,
          .mode = mode,
          .grammars = c.grammar && tokenizer ? std::make_shared<AnswerGrammars>(*tokenizer, mode) : nullptr};
}

}  // namespace fulgur
