// Outcomes on disk before they are used: a run that goes on after a crash trains on the same rewards and asks for none twice.
#pragma once

#include <filesystem>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fulgur/base/file.h"
#include "fulgur/rl/rewards/reward.h"

namespace fulgur {

// JSON Lines, only ever longer: {"key": ..., "score": number or null, "why": ..., "detail": ...}. Of equal keys the first counts.
// Only keys and places are kept in memory. Thread-safe; one process at a time writes to it.
class OutcomeJournal {
 public:
  // Opens it, or makes one that a crash cannot lose. A last line without its end is one whose writer was killed: it is cut off.
  // What `others`, of other processes, hold by now is found too; they are left as they are. Throws InputError with the path and
  // line on a line that is no outcome, and with the path where a file cannot be read or written.
  explicit OutcomeJournal(std::filesystem::path path, const std::vector<std::filesystem::path>& others = {});

  // What was journaled; none: it must be asked for.
  std::optional<Outcome> find(const std::string& key) const;
  // Journals those whose keys are new, and returns once they are on the disk (fsync). What is found afterwards is what counts.
  // Invalid UTF-8 in texts becomes U+FFFD. Throws InputError, with nothing written, on a key that is no UTF-8, a score that is no
  // finite number and a detail that cannot be read back; when writing fails, also from then on, as the file's end is not known.
  void append(const std::vector<std::pair<std::string, Outcome>>& outcomes);
  size_t size() const;

 private:
  struct Place {
    size_t file;  // of files_
    uint64_t begin, bytes;
  };
  uint64_t read_all(size_t file);

  std::vector<std::filesystem::path> files_;  // the first is its own
  mutable std::mutex mutex_;
  std::unordered_map<std::string, Place> places_;
  uint64_t end_ = 0;
  bool broken_ = false;
  std::optional<AppendFile> file_;
};

}  // namespace fulgur
