// How a run begins, goes on and is kept, whatever its stage does: shared by the trainers.
#pragma once

#include <filesystem>
#include <string>

#include "fulgur/base/json.h"
#include "fulgur/model/weights.h"
#include "fulgur/train/parallel.h"

namespace fulgur {

struct Start {
  std::filesystem::path folder;  // the stage's newest whole checkpoint, else the model it begins with
  bool resumed = false;
};
// Rank 0 looks; a file system may show another rank something else. Removes what a killed process left half-written.
Start find_start(const std::filesystem::path& run, const std::string& stage, const std::filesystem::path& model,
                 ProcessGroup& group);

// A fact of a run that its checkpoint must share: throws InputError that names it, or with `force` says so and goes on.
void check_fact(const std::filesystem::path& checkpoint, const std::string& key, const Json& now, const Json& then, bool force,
                bool leads);

// "RUN/checkpoints/<stage>-<step, 8 digits>".
std::filesystem::path checkpoint_folder(const std::filesystem::path& run, const std::string& stage, int64_t step);

// Ranks whose weights have drifted apart would train on in silence. Throws InputError.
void check_agreement(Weights& weights, int64_t step, ProcessGroup& group);

// Whether a signal asked any rank for an end.
bool stop_wanted(bool here, ProcessGroup& group);

}  // namespace fulgur
