// A checkpoint's write with every system call failing in turn, and the process killed before every one. Prints the table
// that docs/checkpoints.md refers to.
#include <ATen/ATen.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "fulgur/base/error.h"
#include "fulgur/base/system_calls.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/train/checkpoint_files.h"
#include "fulgur/train/metrics.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

// A test double for the kernel: call number `at` fails with `error`, writes half (error 0), or is never made (kill).
struct Faults {
  static constexpr int kShort = 0, kKill = -1;
  inline static SystemCalls real = system_calls();
  inline static int at = 0, error = 0, calls = 0;
  inline static std::string name, path;

  // True when this call is to fail.
  static bool hit(const char* call, const std::string& on) {
    if (++calls != at) return false;
    name = call, path = fs::path(on).filename().string();
    if (error == kKill) raise(SIGKILL);
    errno = error;
    return true;
  }
  static int open(const char* path, int flags, mode_t mode) { return hit("open", path) ? -1 : real.open(path, flags, mode); }
  static ssize_t write(int fd, const void* data, size_t size) {
    if (!hit("write", cat("fd ", fd))) return real.write(fd, data, size);
    return error == kShort && size > 1 ? real.write(fd, data, size / 2) : error == kShort ? real.write(fd, data, size) : -1;
  }
  static int fsync(int fd) { return hit("fsync", cat("fd ", fd)) ? -1 : real.fsync(fd); }
  static int close(int fd) { return hit("close", cat("fd ", fd)) ? (real.close(fd), -1) : real.close(fd); }
  static int rename(const char* from, const char* to) { return hit("rename", to) ? -1 : real.rename(from, to); }
  static int mkdir(const char* path, mode_t mode) { return hit("mkdir", path) ? -1 : real.mkdir(path, mode); }

  Faults(int call, int with) {
    at = call, error = with, calls = 0, name.clear();
    system_calls() = {open, write, fsync, close, rename, mkdir};
  }
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;
  ~Faults() { system_calls() = real; }
};

class CheckpointFaults : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(run);
    fs::create_directories(run / "checkpoints");
    save(1);
  }
  void TearDown() override { fs::remove_all(run); }

  // What a trainer writes, in its order: the lines of the steps, then the checkpoint.
  void save(int64_t step) {
    Metrics metrics(run / "metrics.jsonl", "pretrain", step);
    metrics.write({{"stage", "pretrain"}, {"step", step}});
    metrics.sync();
    CheckpointWriter writer(run / "checkpoints" / cat("pretrain-0000000", step));
    for (std::string name : {"model", "optimizer"}) {
      auto file = name + ".safetensors";
      writer.add(file, write_safetensors(writer.folder() / file, {{"w", at::full({64}, double(step))}}));
    }
    writer.add("config.json", write_file_atomic(writer.folder() / "config.json", "{}\n"));
    writer.commit({.stage = "pretrain", .step = step});
  }

  int64_t newest() {
    auto found = newest_checkpoint(run, "pretrain");
    if (!found) return 0;
    auto state = read_checkpoint(*found);
    EXPECT_EQ(read_safetensors(*found / "model.safetensors").at("w")[0].item<double>(), double(state.step));
    return state.step;
  }

  int calls_of_a_save() {
    Faults none(0, 0);
    save(2);
    int calls = Faults::calls;
    fs::remove_all(run / "checkpoints/pretrain-00000002");
    return calls;
  }

  fs::path run = fs::temp_directory_path() / cat("fulgur-faults-", getpid());
};

TEST_F(CheckpointFaults, AnySystemCallMayFailAndNothingIsLost) {
  int calls = calls_of_a_save(), old_left = 0, new_there = 0;
  ASSERT_GT(calls, 30);
  for (int error : {ENOSPC, EIO, EROFS})
    for (int call = 1; call <= calls; ++call) {
      std::string said = "nothing";
      {
        Faults fault(call, error);
        try {
          save(2);
        } catch (const InputError& complaint) {
          said = complaint.what();
        }
      }
      auto where = cat(Faults::name, " (call ", call, ") fails with ", strerror(error), ": ", said);
      EXPECT_NE(said.find(strerror(error)), std::string::npos) << where;
      EXPECT_NE(said.find(run.string()), std::string::npos) << where;
      EXPECT_NE(said.find("hint: "), std::string::npos) << where;
      int64_t step = newest();  // a failing sync of the run's folder leaves the new one there, whole
      EXPECT_TRUE(step == 1 || step == 2) << where;
      EXPECT_FALSE(fs::exists(run / "checkpoints/pretrain-00000002.tmp")) << where;
      (step == 1 ? old_left : new_there)++;
      save(2);  // the fault is gone: it goes on
      EXPECT_EQ(newest(), 2) << where;
      EXPECT_EQ(read_metrics(run / "metrics.jsonl").size(), 2u) << where;
      fs::remove_all(run / "checkpoints/pretrain-00000002");
      if (error == ENOSPC)
        std::printf("| %3d | %-6s | %-9s | %s |\n", call, Faults::name.c_str(), step == 1 ? "old" : "new",
                    said.substr(0, said.find('\n')).substr(said.rfind('/', said.find(": cannot")) + 1).c_str());
    }
  std::printf("%d failing calls: %d left the old checkpoint as the newest, %d the new one; 0 lost\n", 3 * calls, old_left,
              new_there);
}

TEST_F(CheckpointFaults, AShortWriteIsFinished) {
  int calls = calls_of_a_save();
  for (int call = 1; call <= calls; ++call) {
    {
      Faults fault(call, Faults::kShort);
      try {
        save(2);
      } catch (const InputError&) {
        EXPECT_NE(Faults::name, "write");  // other calls have no short form: they failed with errno 0
      }
    }
    if (Faults::name == "write") {
      EXPECT_EQ(newest(), 2) << call;
    }
    fs::remove_all(run / "checkpoints/pretrain-00000002");
  }
}

TEST_F(CheckpointFaults, KilledBeforeAnySystemCallNothingIsLost) {
  int calls = calls_of_a_save(), old_left = 0;
  for (int call = 1; call <= calls; ++call) {
    pid_t child = fork();
    if (child == 0) {
      Faults fault(call, Faults::kKill);
      save(2);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << call;
    int64_t step = newest();
    EXPECT_TRUE(step == 1 || step == 2) << call;
    old_left += step == 1;
    remove_unfinished(run, "pretrain");
    save(2);
    EXPECT_EQ(newest(), 2) << call;
    EXPECT_EQ(read_metrics(run / "metrics.jsonl").size(), 2u) << call;
    fs::remove_all(run / "checkpoints/pretrain-00000002");
  }
  std::printf("killed before each of %d calls: %d times the old checkpoint is the newest, else the new one; 0 lost\n", calls,
              old_left);
}

TEST_F(CheckpointFaults, ADamagedCheckpointIsPassedOver) {
  save(2);
  auto folder = run / "checkpoints/pretrain-00000002";
  auto whole = [&](const std::string& file) { return read_file(folder / file); };
  for (std::string file : {"model.safetensors", "optimizer.safetensors", "config.json", "state.json"}) {
    auto bytes = whole(file);
    auto flipped = bytes;
    flipped[bytes.size() / 2] ^= 1;
    for (const auto& damage : {bytes.substr(0, bytes.size() / 2), flipped, bytes + "x", std::string()}) {
      write_file_atomic(folder / file, damage);
      if (file == "state.json" && damage == bytes + "x") continue;  // refused or not, no number of it has changed
      EXPECT_EQ(newest(), 1) << file << " " << damage.size() << " of " << bytes.size();
    }
    fs::remove(folder / file);
    EXPECT_EQ(newest(), 1) << file;
    write_file_atomic(folder / file, bytes);
    EXPECT_EQ(newest(), 2);
  }
}

TEST_F(CheckpointFaults, WhenAllAreDamagedItIsAnErrorNotANewRun) {
  fs::remove(run / "checkpoints/pretrain-00000001/model.safetensors");
  EXPECT_THROW(newest_checkpoint(run, "pretrain"), InputError);
}

TEST_F(CheckpointFaults, TheLastAndTheBestAreKept) {
  for (int64_t step = 2; step <= 6; ++step) {
    CheckpointWriter writer(run / "checkpoints" / cat("pretrain-0000000", step));
    writer.commit({.stage = "pretrain", .step = step, .valid_loss = step == 3 ? 1.0 : 2.0});
    prune_checkpoints(run, "pretrain", /*keep_last=*/2, /*keep_best=*/1);
  }
  std::vector<std::string> left;
  for (const auto& entry : fs::directory_iterator(run / "checkpoints")) left.push_back(entry.path().filename());
  std::sort(left.begin(), left.end());
  EXPECT_EQ(left, (std::vector<std::string>{"pretrain-00000003", "pretrain-00000005", "pretrain-00000006"}));
}

}  // namespace
}  // namespace fulgur
