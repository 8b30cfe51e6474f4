// One training stage: what it trains, for how long, at which rates. Plain numbers; every field may stand in a recipe
// under the stage's name, or be a flag.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>

namespace fulgur {

// pretrain: dense attention, language loss, all but the indexer.
// warmup:   dense attention, indexer alone, KL to the head-summed attention (paper 2.1.1).
// sparse:   top-k attention, language loss for the model, KL on the selected keys for the indexer (paper 2.1.1).
// sft:      as sparse, on conversations: the loss is on what the assistant says (train/conversations.h).
// rl:       on what the model says itself; rl/config.h has its settings.
enum class StageKind { pretrain, warmup, sparse, sft, rl };
inline constexpr std::array<const char*, 5> kStageNames{"pretrain", "warmup", "sparse", "sft",
                                                        "rl"};  // as they follow each other
inline bool is_sparse(StageKind kind) { return kind >= StageKind::sparse; }

struct StageConfig {
  StageKind kind = StageKind::pretrain;
  int64_t tokens = 0;            // training length; a stage ends with the step that reaches it
  int64_t context = 512;         // tokens a sequence
  int64_t batch_tokens = 8192;   // tokens an optimiser step
  int64_t micro_tokens = 4096;   // tokens a forward pass; the rest is accumulated
  double lr = 3e-3;              // peak rate of the model's parameters
  double indexer_lr = 1e-3;      // peak rate of the indexer's
  std::string schedule = "wsd";  // constant | cosine | wsd | linear, behind the warm-up
  int64_t warmup_steps = 20;     // linear from 0
  double decay_share = 0.3;      // wsd: share of the steps that decay
  double final_lr = 0.05;        // share of the peak at the end
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;  // matrices only
  double clip = 1.0;          // largest gradient norm of the model; of the indexer on its own too
  double mtp_weight = 0.3;
  double balance_weight = 1e-4;  // sequence-wise balance loss
  double bias_speed = 1e-3;      // auxiliary-loss-free balancing: step of the correction bias
  double text_share = 0.25;      // sft: share of the steps that are text of the earlier stages, so that none of it is forgotten
  bool shuffle = true;           // sft: conversations in an order of each epoch's own; false: as the file has them
  std::string dtype = "f32";     // f32 | bf16 compute; masters are f32
  uint64_t seed = 1;

  // How the run is watched and kept: these do not change its result, and may differ when it is resumed.
  int64_t checkpoint_every = 200;    // steps; the last step always
  int64_t keep_last = 2;             // checkpoints kept of a stage: the newest,
  int64_t keep_best = 1;             // and those of lowest held-out loss
  int64_t valid_sequences = 4;       // held-out sequences whose loss is measured at each checkpoint; 0: none
  int64_t probe_every = 50;          // steps between recall and attention-mass probes of one sequence; 0: never
  std::string on_bad_step = "stop";  // stop | skip: what a NaN, an infinity or a loss spike does; 10 in a row always stop
  double spike = 2;                  // a loss this many times the median of the last 32, and .5 above it, is a spike; 0: none is
  double hang_seconds = 1800;        // a step that takes longer ends the process; 0: none does
};

const char* stage_name(StageKind kind);
int64_t stage_steps(const StageConfig& config);
// Rate of a 0-based step as a share of the peak. Throws InputError on an unknown schedule.
double schedule_share(const StageConfig& config, int64_t step);
// Whether runs that differ in this field differ in their weights (where no step is bad).
bool changes_result(const std::string& key);
// One line for every impossible number: [stage] key: expected ..., got ...
void validate(const StageConfig& config);

// Calls visit(key, field) for every field a recipe or a flag may set, in order.
template <class Config, class Visit>
void visit_stage(Config& c, const Visit& visit) {
  visit("tokens", c.tokens);
  visit("context", c.context);
  visit("batch_tokens", c.batch_tokens);
  visit("micro_tokens", c.micro_tokens);
  visit("lr", c.lr);
  visit("indexer_lr", c.indexer_lr);
  visit("schedule", c.schedule);
  visit("warmup_steps", c.warmup_steps);
  visit("decay_share", c.decay_share);
  visit("final_lr", c.final_lr);
  visit("beta1", c.beta1);
  visit("beta2", c.beta2);
  visit("eps", c.eps);
  visit("weight_decay", c.weight_decay);
  visit("clip", c.clip);
  visit("mtp_weight", c.mtp_weight);
  visit("balance_weight", c.balance_weight);
  visit("bias_speed", c.bias_speed);
  visit("text_share", c.text_share);
  visit("shuffle", c.shuffle);
  visit("dtype", c.dtype);
  visit("seed", c.seed);
  visit("checkpoint_every", c.checkpoint_every);
  visit("keep_last", c.keep_last);
  visit("keep_best", c.keep_best);
  visit("valid_sequences", c.valid_sequences);
  visit("probe_every", c.probe_every);
  visit("on_bad_step", c.on_bad_step);
  visit("spike", c.spike);
  visit("hang_seconds", c.hang_seconds);
}

}  // namespace fulgur
