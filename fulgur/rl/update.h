// The policy's gradient: members of groups through the model's forward pass, the objective over what they drew, and back.
#pragma once

#include <vector>

#include "fulgur/model/transformer.h"
#include "fulgur/rl/config.h"
#include "fulgur/rl/policy_rows.h"
#include "fulgur/rl/rollout.h"
#include "fulgur/train/parallel.h"

namespace fulgur {

// A group's members that are trained on: one forward and backward pass.
struct UpdatePart {
  std::vector<const Member*> members;
  std::vector<double> advantage;
};

// Log-probabilities of training beside the sampler's, of tokens drawn with these very weights.
struct Match {
  double mismatch = 0;  // largest |log pi_theta - log pi_old|
  double tokens = 0;
  void add(const Match& other);
};

// What an update measured, summed over its parts and ranks.
struct UpdateSums {
  Objective objective;  // without its gradient
  double entropy = 0;   // of drawn tokens, in nats
  double rows = 0;
  std::vector<double> kl;  // of the indexers: a layer's sum over rows
  Match match;
  void add(const UpdateSums& other);
};

// Leaves the gradients of -J (objective.h), and of indexer_kl times the mean over rows and layers of the indexers' KL, over all
// parts of all ranks in the parameters. `parts` are this rank's; parts add up as a tree (TreeSum), so ranks that share them
// evenly give the bits of one. `version` numbers the model's weights. `reference` may be null where the KL has no strength.
// Throws InputError where rl.exact holds and a log-probability differs from its sampler's: names layer and token.
UpdateSums accumulate_policy_gradients(Transformer& model, const RlConfig& rl, const std::vector<UpdatePart>& parts,
                                       int64_t version, const Transformer* reference, ProcessGroup& group);

// The same check apart from an update, left to choose for itself what the sampler chose: of members' tokens whose version is
// `version`. Throws as above.
Match match_own_version(const Transformer& model, const RlConfig& rl, const std::vector<const Member*>& members, int64_t version);

// Log-probabilities of what the members drew, without gradient.
std::vector<float> policy_log_probs(const Transformer& model, const RlConfig& rl, const PolicyRows& rows, bool replayed);

// Shares of the sampler's choices that the model would make otherwise now: experts of a token, selected keys.
struct ChangedChoices {
  double experts = 0, selections = 0;
};
ChangedChoices changed_choices(const Transformer& model, const RlConfig& rl, const UpdatePart& part);

}  // namespace fulgur
