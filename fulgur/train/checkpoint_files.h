// A checkpoint as files: a folder "<stage>-<step, 8 digits>" with a model anyone can load, what resuming needs, and
// state.json, which holds size and CRC-32 of every other file and of itself. docs/checkpoints.md has the protocol.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "fulgur/base/file.h"
#include "fulgur/base/json.h"

namespace fulgur {

struct CheckpointState {
  std::string stage;
  int64_t step = 0;                       // steps done
  Json facts = Json::object();            // what the result is a function of: must agree on resume
  Json progress = Json::object();         // where the run stands beside its step: data position, streams, last losses
  std::optional<double> valid_loss = {};  // held-out loss at this step, where it was measured
};

// A checkpoint being written beside its place: whole behind commit(), gone when the writer goes without it.
class CheckpointWriter {
 public:
  explicit CheckpointWriter(std::filesystem::path folder);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  const std::filesystem::path& folder() const { return temporary_; }  // where files are to be put
  void add(const std::string& file, FileSum sum) { sums_[file] = sum; }
  // Writes state.json, makes all of it durable, and moves the folder to its place.
  void commit(const CheckpointState& state);

 private:
  std::filesystem::path target_, temporary_;
  std::map<std::string, FileSum> sums_;
  bool committed_ = false;
};

// Throws InputError with file and difference when state.json or any file it names is missing, cut or changed.
CheckpointState read_checkpoint(const std::filesystem::path& folder);

// The newest whole checkpoint of a stage. Each damaged one that is passed over is named on standard error.
std::optional<std::filesystem::path> newest_checkpoint(const std::filesystem::path& run, const std::string& stage);
bool has_checkpoints(const std::filesystem::path& run, const std::string& stage);

// Deletes a stage's checkpoints but the newest `keep_last` and the `keep_best` of lowest held-out loss. What cannot be
// deleted is named on standard error and stays.
void prune_checkpoints(const std::filesystem::path& run, const std::string& stage, int64_t keep_last, int64_t keep_best);
// Deletes what a killed process left half-written.
void remove_unfinished(const std::filesystem::path& run, const std::string& stage);

}  // namespace fulgur
