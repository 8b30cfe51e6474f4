// The program in a folder of its own, with text to train on: what the tests of this room share.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/json.h"

namespace fulgur {

namespace fs = std::filesystem;

struct Output {
  int code = 0;
  std::string out;  // standard output and error
};

class Program : public testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  Output run(const std::string& arguments, const std::string& input = "") {
    write_file_atomic(folder / "stdin", input);
    FILE* pipe = popen(cat("cd '", folder.string(), "' && { '" FULGUR_BINARY "' ", arguments, "\n} <stdin 2>&1").c_str(), "r");
    Output result;
    char block[4096];
    while (size_t got = fread(block, 1, sizeof block, pipe)) result.out.append(block, got);
    int status = pclose(pipe);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return result;
  }

  // A run directory's tokenizer and shards, from a text that repeats with small changes; and a tiny recipe.
  void make_data() {
    std::string text;
    for (int i = 0; i < 6000; ++i)
      text += cat("line ", i % 97, " says that ", (i * 7) % 31, " is not ", i % 5, i % 9 ? ". " : ".\n");
    fs::create_directories(folder / "text");
    for (int i = 0; i < 20; ++i) write_file_atomic(folder / "text" / cat(i, ".txt"), text.substr(i * 3000, 6000));
    write_file_atomic(folder / "tiny.toml",
                      "scale = 0.25\ntext = \"text\"\nvocab_size = 300\nholdout_every = 5\n"
                      "[pretrain]\ntokens = \"1M\"\ncontext = 64\nbatch_tokens = 256\nmicro_tokens = 128\nwarmup_steps = "
                      "3\ncheckpoint_every = 5\nprobe_every = 7\n"
                      "[warmup]\ntokens = \"64k\"\ncontext = 64\nbatch_tokens = 256\nmicro_tokens = 256\ncheckpoint_every = 5\n"
                      "[sparse]\ntokens = \"64k\"\ncontext = 64\nbatch_tokens = 256\nmicro_tokens = 256\ncheckpoint_every = 5\n");
    ASSERT_EQ(run("tokenizer train text --vocab-size 300 --out tok.json").code, 0);
    ASSERT_EQ(run("data pack text --tokenizer tok.json --out shards --holdout-every 5").code, 0);
  }

  // The shell that starts `size` ranks of a command, waits for all, and prints "rank exit-code" of each.
  std::string ranks(int size, const std::string& command, const std::string& meanwhile = "") {
    int port = 20000 + (getpid() * 7 + ++groups_) % 20000;
    std::string text = cat("--version; export WORLD_SIZE=", size, " MASTER_ADDR=127.0.0.1 MASTER_PORT=", port, "; ");
    for (int r = 0; r < size; ++r) text += cat("RANK=", r, " '" FULGUR_BINARY "' --threads 1 ", command, " & p", r, "=$!; ");
    text += meanwhile;
    for (int r = 0; r < size; ++r) text += cat(" wait $p", r, "; echo rank ", r, " exit $?;");
    return text;
  }

  // A command (with `again` behind the first time) again and again, each time killed -9 `percent` of `whole` behind its start
  // and then later, until it ends by itself. How many kills that took; -1: it never did.
  using Clock = std::chrono::steady_clock;
  int kills_until_the_end(const std::string& command, Clock::duration whole, int percent, const std::string& again = "--resume") {
    for (int attempt = 0; attempt < 40; ++attempt) {
      pid_t child = fork();
      if (child == 0) {
        [[maybe_unused]] int moved = chdir(folder.c_str());
        freopen("/dev/null", "w", stderr), freopen("/dev/null", "w", stdout);
        auto line = cat("exec '" FULGUR_BINARY "' ", command, " ", attempt > 0 ? again : "");
        execl("/bin/sh", "sh", "-c", line.c_str(), nullptr);
        _exit(127);
      }
      auto until = Clock::now() + whole * (percent + 5 * attempt) / 100;
      int status = 0;
      pid_t ended = 0;
      while ((ended = waitpid(child, &status, WNOHANG)) == 0 && Clock::now() < until)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (ended == child) return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? attempt : -1;
      kill(child, SIGKILL), waitpid(child, &status, 0);
    }
    return -1;
  }

  fs::path folder = fs::temp_directory_path() / cat("fulgur-cli-", getpid());

 private:
  int groups_ = 0;  // of ranks, each with a port of its own
};

}  // namespace fulgur
