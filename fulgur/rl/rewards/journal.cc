#include "fulgur/rl/rewards/journal.h"

#include <cmath>
#include <fstream>
#include <system_error>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

constexpr std::string_view kBegin = "{\"key\":";

struct Entry {
  std::string key;
  Outcome outcome;
};

std::string line_of(const std::string& key, const Outcome& outcome) {
  FULGUR_CHECK(invalid_utf8(key) == key.size(), "[rewards] journal: expected a key that is UTF-8, got ", valid_utf8(key));
  FULGUR_CHECK(!outcome.score || std::isfinite(*outcome.score), "[rewards] journal: ", key, ": expected a finite score, got ",
               *outcome.score);
  Json score = outcome.score ? Json(*outcome.score) : Json(nullptr);
  Json line{{"key", key}, {"score", score}, {"why", outcome.why}, {"detail", outcome.detail}};
  return line.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Entry entry_of(std::string_view line, const std::string& where) {
  Json json = parse_json(line, where);
  auto is = [&](const char* field, bool (Json::*kind)() const noexcept) { return json.contains(field) && (json[field].*kind)(); };
  bool scored = is("score", &Json::is_number) || is("score", &Json::is_null);
  FULGUR_CHECK(
      json.is_object() && is("key", &Json::is_string) && scored && is("why", &Json::is_string) && json.contains("detail"),
      "[rewards] ", where, ": expected a journaled outcome with key, score, why and detail, got ", line.substr(0, 100));
  Entry out{json["key"], {std::nullopt, json["why"], json["detail"]}};
  if (!json["score"].is_null()) out.outcome.score = json["score"].get<double>();
  return out;
}

}  // namespace

OutcomeJournal::OutcomeJournal(std::filesystem::path path, const std::vector<std::filesystem::path>& others)
    : files_{std::move(path)} {
  if (!std::filesystem::exists(files_[0])) write_file_atomic(files_[0], "");  // its name is on the disk, too
  files_.insert(files_.end(), others.begin(), others.end());
  end_ = read_all(0);
  for (size_t file = 1; file < files_.size(); ++file) read_all(file);
  file_.emplace(files_[0]);
}

// Returns where its last whole line ends.
uint64_t OutcomeJournal::read_all(size_t file) {
  const auto& path = files_[file];
  std::ifstream in(path, std::ios::binary);
  FULGUR_CHECK(in.is_open(), "[rewards] ", path.string(), ": expected a journal, got a file that cannot be opened");
  uint64_t end = 0;
  std::string line;
  for (int64_t number = 1; std::getline(in, line); ++number) {
    auto where = cat(path.string(), ": line ", number);
    if (in.eof()) {  // without its end
      auto begin = std::string_view(line).substr(0, kBegin.size());
      FULGUR_CHECK(kBegin.starts_with(begin), "[rewards] ", where, ": expected a journaled outcome, got ", line.substr(0, 100));
      if (file > 0) return end;
      std::error_code error;
      std::filesystem::resize_file(path, end, error);
      FULGUR_CHECK(!error, "[rewards] ", where, ": cannot cut off a line that was not finished: ", error.message());
      return end;
    }
    places_.try_emplace(entry_of(line, where).key, Place{file, end, line.size()});
    end += line.size() + 1;
  }
  FULGUR_CHECK(!in.bad(), "[rewards] ", path.string(), ": cannot read behind byte ", end);
  return end;
}

std::optional<Outcome> OutcomeJournal::find(const std::string& key) const {
  std::lock_guard lock(mutex_);
  auto found = places_.find(key);
  if (found == places_.end()) return std::nullopt;
  auto [file, begin, bytes] = found->second;
  std::string line(bytes, '\0');
  std::ifstream in(files_[file], std::ios::binary);
  in.seekg(std::streamoff(begin));
  in.read(line.data(), std::streamsize(bytes));
  auto where = cat(files_[file].string(), ": byte ", begin);
  FULGUR_CHECK(in.good(), "[rewards] ", where, ": cannot read ", bytes, " bytes");
  auto entry = entry_of(line, where);
  FULGUR_CHECK(entry.key == key, "[rewards] ", where, ": expected the outcome of ", key, ", got that of ", entry.key);
  return std::move(entry.outcome);
}

void OutcomeJournal::append(const std::vector<std::pair<std::string, Outcome>>& outcomes) {
  std::lock_guard lock(mutex_);
  if (broken_)
    throw InputError(
        cat("[rewards] ", files_[0].string(), ": expected a journal that can be written, got one where it failed before"),
        "open it again");
  std::string batch;
  std::unordered_map<std::string, Place> places;
  for (const auto& [key, outcome] : outcomes) {
    if (places_.count(key) || places.count(key)) continue;
    auto line = line_of(key, outcome);
    entry_of(line, "journal: " + key);  // a detail too deep to be read again
    places[key] = {0, end_ + batch.size(), line.size()};
    batch += line + "\n";
  }
  if (batch.empty()) return;
  broken_ = true;
  file_->write(batch);
  file_->sync();
  broken_ = false;
  end_ += batch.size();
  places_.merge(places);
}

size_t OutcomeJournal::size() const {
  std::lock_guard lock(mutex_);
  return places_.size();
}

}  // namespace fulgur
