#include "fulgur/rl/rewards/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cmath>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/base/system_calls.h"

namespace fulgur {
namespace {

using testing::HasSubstr;

class Journal : public testing::Test {
 protected:
  Journal() { std::filesystem::create_directories(folder_); }
  ~Journal() override { std::filesystem::remove_all(folder_); }
  void write(std::string_view bytes) const { write_file_atomic(path_, bytes); }
  std::string message_of_opening() const {
    try {
      OutcomeJournal journal(path_);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  }

  std::filesystem::path folder_ = cat("/tmp/fulgur_journal_test.", ::getpid()), path_ = folder_ / "outcomes.jsonl";
};

const Outcome kRight{1, "equal", {{"scores", {1.0, 0.25}}}}, kWrong{0, "differs"}, kInvalid{std::nullopt, "time limit: 5 s"};

TEST_F(Journal, GivesBackWhatWasWrittenAlsoWhenOpenedAgain) {
  std::vector<std::pair<std::string, Outcome>> written{
      {"step 1/0", kRight}, {"step 1/1", kWrong}, {"ü\n\"", kInvalid}, {"-0", {-0.0, "", "text"}}, {"third", {1.0 / 3}}};
  {
    OutcomeJournal journal(path_);
    EXPECT_EQ(journal.find("step 1/0"), std::nullopt);
    journal.append(written);
    for (const auto& [key, outcome] : written) EXPECT_EQ(journal.find(key), outcome) << key;
    EXPECT_EQ(read_file(path_).substr(0, 40), R"({"key":"step 1/0","score":1.0,"why":"equ)");
  }
  OutcomeJournal again(path_);
  EXPECT_EQ(again.size(), 5u);
  for (const auto& [key, outcome] : written) EXPECT_EQ(again.find(key), outcome) << key;
  EXPECT_TRUE(std::signbit(*again.find("-0")->score));
}

TEST_F(Journal, FindsWhatOtherProcessesHadWrittenAndLeavesTheirFilesAlone) {
  auto other = folder_ / "outcomes-1.jsonl";
  OutcomeJournal(other).append({{"a", kRight}, {"b", kWrong}});
  auto torn = read_file(other) + R"({"key":"c","sc)";
  write_file_atomic(other, torn);
  OutcomeJournal journal(path_, {other});
  EXPECT_EQ(journal.find("a"), kRight);
  EXPECT_EQ(journal.find("c"), std::nullopt);
  journal.append({{"b", kRight}, {"c", kInvalid}});
  EXPECT_EQ(journal.find("b"), kWrong) << "its key is not new";
  EXPECT_EQ(journal.find("c"), kInvalid);
  EXPECT_EQ(read_file(other), torn);
  EXPECT_EQ(OutcomeJournal(path_).find("c"), kInvalid);
}

TEST_F(Journal, TheFirstOfEqualKeysCounts) {
  OutcomeJournal journal(path_);
  journal.append({{"a", kRight}, {"a", kWrong}});
  auto bytes = read_file(path_);
  journal.append({{"a", kInvalid}});
  EXPECT_EQ(journal.find("a"), kRight);
  EXPECT_EQ(read_file(path_), bytes);
  write(bytes + R"({"key":"a","score":0.5,"why":"","detail":null})" + "\n");
  OutcomeJournal again(path_);
  EXPECT_EQ(again.find("a"), kRight);
  EXPECT_EQ(again.size(), 1u);
}

TEST_F(Journal, KilledAtAnyByteKeepsAllWholeLines) {
  { OutcomeJournal(path_).append({{"a", kRight}, {"bé", kWrong}, {"c", kInvalid}}); }
  auto bytes = read_file(path_);
  for (size_t size = 0; size <= bytes.size(); ++size) {
    write(bytes.substr(0, size));
    size_t whole = std::count(bytes.begin(), bytes.begin() + long(size), '\n');
    OutcomeJournal journal(path_);
    ASSERT_EQ(journal.size(), whole) << "killed at byte " << size;
    EXPECT_EQ(read_file(path_), bytes.substr(0, size == 0 ? 0 : bytes.rfind('\n', size - 1) + 1)) << size;
    journal.append({{"a", kRight}, {"bé", kWrong}, {"c", kInvalid}});
    ASSERT_EQ(read_file(path_), bytes) << "goes on as if nothing had been";
    EXPECT_EQ(journal.find("c"), kInvalid);
  }
}

TEST_F(Journal, NamesADamagedLine) {
  { OutcomeJournal(path_).append({{"a", kRight}, {"b", kWrong}, {"c", kInvalid}}); }
  auto bytes = read_file(path_);
  size_t second = bytes.find("\n") + 1, third = bytes.find("\n", second) + 1;
  auto with_second = [&](const std::string& line) { return bytes.substr(0, second) + line + "\n" + bytes.substr(third); };
  for (const char* line : {"", "{", R"({"key":"b"})", R"({"key":1,"score":0,"why":"","detail":null})", "[]",
                           R"({"key":"b","score":"0","why":"","detail":null})", R"({"key":"b","score":0,"detail":null})",
                           R"({"key":"b","score":0,"why":""})", "{\"key\":\"b\xff\"}"}) {
    write(with_second(line));
    EXPECT_THAT(message_of_opening(), HasSubstr(path_.string() + ": line 2")) << line;
  }
  write("a file of mine, without a line end");
  EXPECT_THAT(message_of_opening(), HasSubstr("line 1: expected a journaled outcome"));
  EXPECT_EQ(read_file(path_), "a file of mine, without a line end") << "is not cut off";
}

TEST_F(Journal, WritesNothingThatCannotBeReadAgain) {
  OutcomeJournal journal(path_);
  Json deep = 1;
  for (int i = 0; i < 300; ++i) deep = Json::array({deep});
  EXPECT_THROW(journal.append({{"fine", kRight}, {"deep", {1, "", deep}}}), InputError);
  EXPECT_THROW(journal.append({{"\xff", kRight}}), InputError);
  EXPECT_THROW(journal.append({{"nan", {std::nan("")}}}), InputError);
  EXPECT_EQ(read_file(path_), "");
  journal.append({{"fine", {1, "bad \xff byte"}}});
  EXPECT_EQ(journal.find("fine")->why, "bad \uFFFD byte");
}

// Calls of the kernel that fail on demand.
int failing_writes = 0, syncs = 0, failing_syncs = 0;
ssize_t half_a_write(int fd, const void* data, size_t size) {
  if (failing_writes == 0) return ::write(fd, data, size);
  if (failing_writes-- == 2) return ::write(fd, data, size / 2);
  return errno = ENOSPC, -1;
}
int counted_sync(int fd) {
  ++syncs;
  if (failing_syncs == 0) return ::fsync(fd);
  return --failing_syncs, errno = EIO, -1;
}

TEST_F(Journal, AFullDiskOrAFailedSyncStopsItAndLosesNothing) {
  auto saved = system_calls();
  system_calls().write = half_a_write;
  system_calls().fsync = counted_sync;
  {
    OutcomeJournal journal(path_);
    syncs = 0;
    journal.append({{"a", kRight}});
    EXPECT_EQ(syncs, 1) << "before it returns";
    failing_writes = 2;
    EXPECT_THROW(journal.append({{"b", kRight}}), InputError);
    EXPECT_EQ(journal.find("b"), std::nullopt) << "not on the disk: not to be used";
    EXPECT_THROW(journal.append({{"c", kRight}}), InputError) << "would go on behind half a line";
  }
  {
    OutcomeJournal journal(path_);
    EXPECT_EQ(journal.size(), 1u);
    failing_syncs = 1;
    EXPECT_THROW(journal.append({{"b", kWrong}}), InputError);
    EXPECT_EQ(journal.find("b"), std::nullopt);
  }
  system_calls() = saved;
  EXPECT_EQ(OutcomeJournal(path_).find("b"), kWrong) << "it did get there";
}

TEST_F(Journal, ThreadsMayShareIt) {
  OutcomeJournal journal(path_);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        journal.append({{cat("of all ", i), {double(t)}}, {cat(t, " ", i), {double(i)}}});
        EXPECT_EQ(journal.find(cat(t, " ", i))->score, i);
      }
    });
  for (auto& thread : threads) thread.join();
  OutcomeJournal again(path_);
  EXPECT_EQ(again.size(), 50u);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(again.find(cat("of all ", i)), journal.find(cat("of all ", i)));
}

TEST_F(Journal, AnyScoreComesBackAsTheSameBits) {
  RandomStream random(1, "scores");
  std::vector<std::pair<std::string, Outcome>> written;
  while (written.size() < 1000)
    if (auto score = std::bit_cast<double>(random.bits()); std::isfinite(score))
      written.push_back({std::to_string(written.size()), {score}});
  { OutcomeJournal(path_).append(written); }
  OutcomeJournal journal(path_);
  for (const auto& [key, outcome] : written) EXPECT_EQ(journal.find(key), outcome);
}

}  // namespace
}  // namespace fulgur
