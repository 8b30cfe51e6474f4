// Where a step's rollouts come from: drawn when the step begins; drawn ahead of it with older weights while the trainer works
// (staleness); or out of files (replay). Rewarded, journaled, and of the size a step takes.
//
// Ahead of its step means rounds. Round r starts batch r and takes every open batch on by `round_tokens` tokens a member, with a
// copy of the weights as they are then; batch r - staleness is trained on meanwhile, and what is still open of the batch after it
// goes to its end in that round. So each batch is drawn by weights at most `staleness` steps old, long answers are not left out,
// and which weights drew which token does not depend on time.
#pragma once

#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fulgur/model/transformer.h"
#include "fulgur/rl/config.h"
#include "fulgur/rl/rewards/journal.h"
#include "fulgur/rl/rewards/verifier.h"
#include "fulgur/rl/rollout.h"
#include "fulgur/rl/update.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/train/parallel.h"

namespace fulgur {

// What the rollouts of a step were, summed over members.
struct RolloutSums {
  double members = 0, invalid = 0, score = 0, reward = 0, passed = 0, sampled = 0, answers = 0, kept_mass = 0, cut = 0,
         malformed = 0, trained_groups = 0, resampled_groups = 0, staleness = 0;
  std::vector<double> valid_of_kind, passed_of_kind;  // of each of RlConfig::tasks
  std::vector<double> numbers() const;
  void add(const std::vector<double>& numbers);  // of as many kinds
};

struct Rollouts {
  std::vector<Member> members;                   // of this rank, group by group
  std::vector<std::optional<double>> advantage;  // of each; none: not trained on
  RolloutSums sums;                              // also of groups that were drawn again
};

class Collector {
 public:
  Collector(const RlConfig& config, const std::filesystem::path& run, const Tokenizer& tokenizer, ProcessGroup& group);
  ~Collector();  // waits for a round that goes on

  // The rollouts of a step. `model` has the weights behind `step` steps.
  Rollouts take(const Transformer& model, int64_t step);
  // Between the two of a step, a round goes on in another thread where there are rounds. The second throws what it met, and gives
  // what of all ranks' tokens was compared with the very weights that drew them since it was last called. Collective.
  void begin_round(const Transformer& model, int64_t step);
  Match end_round();

  // Raises and lowers difficulties by the step's pass rates, summed over ranks: 4 of 5 right is too easy, 1 of 5 too hard.
  void adapt(const RolloutSums& everywhere);
  Json difficulties() const;  // of the kinds that have a range

  // What a checkpoint needs beside the model: the difficulties, and a file for each rank's open batches. Collective.
  Json state() const;
  std::map<std::string, std::string> open_files() const;
  void load(const std::filesystem::path& checkpoint, const Json& state, const ModelConfig& model);

 private:
  struct Wave {
    std::vector<int64_t> prompts = {};  // of this rank
    int64_t number = 0;                 // how often they were drawn before
  };
  int64_t local_prompts() const { return config_.prompts / group_.size(); }
  int64_t global_prompt(int64_t local) const;
  std::vector<Member> draw(int64_t step, const Wave& wave) const;
  void play(const Transformer& model, const std::vector<Turn>& turns, int64_t version);
  void reward(const std::vector<Member*>& members);
  void verify(const std::vector<Member*>& members) const;
  void add_relative_lengths(const std::vector<std::optional<double>>& scores, const std::vector<int64_t>& lengths,
                            std::vector<std::optional<double>>& rewards) const;
  void play_to_the_end(const Transformer& model, std::vector<Member>& members, int64_t version);
  Rollouts measured(std::vector<Member> members, int64_t step, int64_t first = 0) const;
  void redraw(const Transformer& model, int64_t step, Rollouts& rollouts);
  void start(int64_t batch);
  void round(const Transformer& model, int64_t batch, int64_t version);
  std::vector<Member> mine(std::vector<Member> all, const std::string& where) const;
  std::vector<Member> replayed(const ModelConfig& model, int64_t step) const;

  const RlConfig& config_;
  std::filesystem::path run_;
  const Tokenizer& tokenizer_;
  RolloutOptions options_;
  ProcessGroup& group_;
  std::vector<TaskKind> kinds_;
  std::vector<int64_t> difficulty_;  // of each kind now
  OutcomeJournal journal_;
  Verifier verifier_;
  std::map<int64_t, std::vector<Member>> open_;  // batches that were begun, by their step
  int64_t started_ = 0;                          // batches
  Match match_;                                  // of rounds since end_round
  std::future<void> running_;
};

}  // namespace fulgur
