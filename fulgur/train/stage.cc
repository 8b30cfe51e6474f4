#include "fulgur/train/stage.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "fulgur/base/error.h"

namespace fulgur {

const char* stage_name(StageKind kind) { return kStageNames[size_t(kind)]; }

int64_t stage_steps(const StageConfig& c) { return (c.tokens + c.batch_tokens - 1) / c.batch_tokens; }

double schedule_share(const StageConfig& c, int64_t step) {
  if (step < c.warmup_steps) return double(step + 1) / double(c.warmup_steps);
  int64_t steps = stage_steps(c);
  auto toward_end = [&](double begin) {  // 0 at `begin`, 1 at the last step
    double span = double(steps - 1) - begin;
    return span > 0 ? std::clamp((double(step) - begin) / span, 0.0, 1.0) : 0.0;
  };
  if (c.schedule == "constant") return 1;
  if (c.schedule == "linear") return 1 - (1 - c.final_lr) * toward_end(double(c.warmup_steps));
  if (c.schedule == "wsd") return 1 - (1 - c.final_lr) * toward_end(double(steps) * (1 - c.decay_share));
  if (c.schedule == "cosine")
    return c.final_lr + (1 - c.final_lr) * 0.5 * (1 + std::cos(M_PI * toward_end(double(c.warmup_steps))));
  throw InputError(cat("[stage] schedule: expected constant, cosine, wsd or linear, got ", c.schedule));
}

bool changes_result(const std::string& key) {
  static const std::set<std::string> watching{"checkpoint_every", "keep_last",   "keep_best", "valid_sequences",
                                              "probe_every",      "on_bad_step", "spike",     "hang_seconds"};
  return !watching.contains(key);
}

void validate(const StageConfig& c) {
  auto positive = [](const char* key, double value) {
    FULGUR_CHECK(value > 0 && std::isfinite(value), "[stage] ", key, ": expected a positive number, got ", value);
  };
  auto share = [](const char* key, double value) {
    FULGUR_CHECK(value >= 0 && value <= 1, "[stage] ", key, ": expected a number from 0 to 1, got ", value);
  };
  auto not_negative = [](const char* key, double value) {
    FULGUR_CHECK(value >= 0 && std::isfinite(value), "[stage] ", key, ": expected 0 or more, got ", value);
  };
  positive("tokens", double(c.tokens)), positive("context", double(c.context)), positive("lr", c.lr);
  positive("indexer_lr", c.indexer_lr), positive("eps", c.eps), positive("clip", c.clip);
  positive("checkpoint_every", double(c.checkpoint_every)), positive("keep_last", double(c.keep_last));
  share("decay_share", c.decay_share), share("final_lr", c.final_lr), share("beta1", c.beta1), share("beta2", c.beta2);
  share("text_share", c.text_share);
  not_negative("warmup_steps", double(c.warmup_steps)), not_negative("weight_decay", c.weight_decay);
  not_negative("mtp_weight", c.mtp_weight), not_negative("balance_weight", c.balance_weight);
  not_negative("bias_speed", c.bias_speed), not_negative("probe_every", double(c.probe_every));
  not_negative("keep_best", double(c.keep_best)), not_negative("valid_sequences", double(c.valid_sequences));
  not_negative("hang_seconds", c.hang_seconds);
  FULGUR_CHECK(c.spike == 0 || c.spike > 1, "[stage] spike: expected 0 or a factor above 1, got ", c.spike);
  FULGUR_CHECK(c.on_bad_step == "stop" || c.on_bad_step == "skip", "[stage] on_bad_step: expected stop or skip, got ",
               c.on_bad_step);
  FULGUR_CHECK(c.context >= 4, "[stage] context: expected at least 4 tokens, got ", c.context);
  FULGUR_CHECK(c.micro_tokens > 0 && c.micro_tokens % c.context == 0, "[stage] micro_tokens: expected a multiple of context ",
               c.context, ", got ", c.micro_tokens);
  FULGUR_CHECK(c.batch_tokens > 0 && c.batch_tokens % c.micro_tokens == 0,
               "[stage] batch_tokens: expected a multiple of micro_tokens ", c.micro_tokens, ", got ", c.batch_tokens);
  FULGUR_CHECK(c.dtype == "f32" || c.dtype == "bf16", "[stage] dtype: expected f32 or bf16, got ", c.dtype);
  schedule_share(c, c.warmup_steps);
}

}  // namespace fulgur
