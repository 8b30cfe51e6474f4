// The program as people meet it: exit codes, one-line complaints, nothing half-written, runs that go on.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/json.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

const std::string kGolden = FULGUR_GOLDEN "/model/";

struct Output {
  int code;
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

  fs::path folder = fs::temp_directory_path() / cat("fulgur-cli-", getpid());
};

TEST_F(Program, HelpOfEveryCommandHasAnExample) {
  for (std::string command :
       {"", "speedrun", "tokenizer train", "tokenizer encode", "tokenizer decode", "data pack", "train pretrain", "train warmup",
        "train sparse", "forward", "generate", "inspect", "eval perplexity", "report", "bench ops", "bench train"}) {
    auto help = run(command + " --help");
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_NE(help.out.find("Example:\n  "), std::string::npos) << command << "\n" << help.out;
  }
}

TEST_F(Program, AWrongCommandLineExitsWith2AndSaysWhatIsExpected) {
  for (std::string wrong : {"", "fly", "forward", "forward --input a --output b --dump everything", "train pretrain", "inspect",
                            "generate --model x --prompt y --max-tokens -3", "--threads many inspect x", "speedrun --seed abc"}) {
    auto said = run(wrong);
    EXPECT_EQ(said.code, 2) << wrong << "\n" << said.out;
    EXPECT_EQ(said.out.rfind("[usage] ", 0), 0u) << said.out;
  }
  EXPECT_EQ(run("forward --input a --output b").code, 2);  // neither --model nor --config
}

TEST_F(Program, BadFilesExitWith1NameTheFileAndLeaveNothingBehind) {
  auto forward = [&](const std::string& config, const std::string& weights, const std::string& input) {
    return run(cat("forward --config '", config, "' --weights '", weights, "' --input '", input, "' --output out.safetensors"));
  };
  std::string config = kGolden + "dsa-small/config.json", weights = kGolden + "weights/model.safetensors",
              input = kGolden + "dsa-small/inputs.safetensors";
  auto bytes = read_file(weights);
  write_file_atomic(folder / "cut.safetensors", bytes.substr(0, bytes.size() / 2));
  write_file_atomic(folder / "junk.safetensors", "not a model at all, just text");
  Json json = read_json(config);
  json["n_group"] = 3;
  write_file_atomic(folder / "groups.json", json.dump());
  json["n_group"] = 4, json["hidden_size"] = 72;
  write_file_atomic(folder / "wide.json", json.dump());
  struct Bad {
    Output said;
    std::string file, what;
  };
  for (const Bad& bad : std::vector<Bad>{
           {forward("none.json", weights, input), "none.json", ""},
           {forward("groups.json", weights, input), "groups.json", "n_group: expected groups that divide 8 experts, got 3"},
           {forward("wide.json", weights, input), "", "expected [256, 72], got [256, 64]"},
           {forward(config, "cut.safetensors", input), "cut.safetensors", "cut off"},
           {forward(config, "junk.safetensors", input), "junk.safetensors", "expected a header of at most"},
           {forward(config, weights, weights), "model.safetensors", "expected a tensor tokens, got none"},
           {run("inspect nowhere"), "nowhere", "expected a model folder or a run directory"},
           {run("report nowhere"), "nowhere", "expected a run directory with run.json"},
           {run("data pack nowhere --tokenizer t.json --out s"), "t.json", ""},
           {run("train pretrain none.toml --out r"), "none.toml", ""},
           {run("speedrun --data nowhere --out r"), "nowhere", "expected a file or folder"}}) {
    EXPECT_EQ(bad.said.code, 1) << bad.said.out;
    EXPECT_NE(bad.said.out.find(bad.file), std::string::npos) << bad.said.out;
    EXPECT_NE(bad.said.out.find(bad.what), std::string::npos) << bad.said.out;
    EXPECT_EQ(bad.said.out[0], '[') << bad.said.out;
  }
  EXPECT_FALSE(fs::exists(folder / "out.safetensors"));
  EXPECT_FALSE(fs::exists(folder / "r"));
}

TEST_F(Program, ARecipesMistakesAreNamedWithTheirLine) {
  for (auto [text, says] : std::vector<std::pair<std::string, std::string>>{
           {"scale = 1\nsped = 2\n", "bad.toml:2: expected scale, seed"},
           {"[pretrain]\nlearning_rate = 1\n", "bad.toml:2: expected a key of a stage, got pretrain.learning_rate"},
           {"[pretrain]\ntokens = \"many\"\n", "bad.toml:2: pretrain.tokens: expected a number"},
           {"[pretrain]\ncontext = 1.5\n", "expected a whole number, got 1.5"},
           {"[model]\nqk_rope_head_dim = 15\n", "qk_rope_head_dim: expected an even size"},
           {"[model]\nsize = 15\n", "model.size: expected a key of config.json"},
           {"scale = \n", "bad.toml:1: expected TOML"}}) {
    write_file_atomic(folder / "bad.toml", text);
    auto said = run("train pretrain bad.toml --out r");
    EXPECT_EQ(said.code, 1);
    EXPECT_NE(said.out.find(says), std::string::npos) << said.out;
  }
}

TEST_F(Program, TokenizerSpeaksJsonLines) {
  make_data();
  auto encoded = run("tokenizer encode --tokenizer tok.json",
                     "{\"id\": 7, \"text\": \"line 3 says\", \"other\": 1}\nnonsense\n\n{\"id\": 8}\n");
  EXPECT_EQ(encoded.code, 0);
  auto first = Json::parse(encoded.out.substr(0, encoded.out.find('\n')));
  EXPECT_EQ(first["id"], 7);
  auto decoded = run("tokenizer decode --tokenizer tok.json", first.dump() + "\n");
  EXPECT_EQ(Json::parse(decoded.out)["text"], "line 3 says");
  EXPECT_NE(encoded.out.find("\"id\":8,\"error\""), std::string::npos) << encoded.out;
}

TEST_F(Program, KilledAtAnyTimeTheSameRunGoesOnToTheSameWeights) {
  make_data();
  auto train = [&](const std::string& out, bool resume) {
    return cat("train pretrain tiny.toml --data shards --out ", out, " --tokens 16128", resume ? " --resume" : "");
  };
  ASSERT_EQ(run(train("whole", false)).code, 0);
  auto weights = [&](const std::string& out) {
    return read_file(folder / out / "checkpoints/pretrain-00000063/model.safetensors");
  };
  for (int delay_ms : {350, 700}) {
    auto out = cat("killed-", delay_ms);
    bool finished = false;
    int kills = 0;
    for (int attempt = 0; attempt < 30 && !finished; ++attempt) {
      pid_t child = fork();
      if (child == 0) {
        [[maybe_unused]] int moved = chdir(folder.c_str());
        freopen("/dev/null", "w", stderr), freopen("/dev/null", "w", stdout);
        execl("/bin/sh", "sh", "-c", cat("exec '" FULGUR_BINARY "' ", train(out, attempt > 0)).c_str(), nullptr);
        _exit(127);
      }
      auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(delay_ms + 40 * attempt);
      int status = 0;
      while (waitpid(child, &status, WNOHANG) == 0) {
        if (std::chrono::steady_clock::now() > until) {
          kill(child, SIGKILL), waitpid(child, &status, 0), ++kills;
          break;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
      finished = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    }
    ASSERT_TRUE(finished);
    EXPECT_GT(kills, 0);
    EXPECT_EQ(weights(out), weights("whole"));
  }
  // Every step once in the metrics, whatever happened.
  std::ifstream metrics(folder / "killed-350/metrics.jsonl");
  int64_t expected = 0;
  for (std::string line; std::getline(metrics, line);) EXPECT_EQ(Json::parse(line)["step"], expected++);
  EXPECT_EQ(expected, 63);
}

TEST_F(Program, CtrlCWritesACheckpointAndSaysHowToGoOn) {
  make_data();
  auto said = run("train pretrain tiny.toml --data shards --out r & child=$!; sleep 1.5; kill -INT $child; wait $child");
  EXPECT_EQ(said.code, 130) << said.out;
  EXPECT_NE(said.out.find("--resume goes on"), std::string::npos) << said.out;
  EXPECT_FALSE(fs::is_empty(folder / "r/checkpoints"));
  auto refused = run("train pretrain tiny.toml --data shards --out r");
  EXPECT_EQ(refused.code, 1);
  EXPECT_NE(refused.out.find("--resume"), std::string::npos) << refused.out;
  auto other = run("train pretrain tiny.toml --data shards --out r --resume --lr 1e-4");
  EXPECT_EQ(other.code, 1);
  EXPECT_NE(other.out.find("another --out"), std::string::npos) << other.out;
}

TEST_F(Program, ADamagedShardIsNamed) {
  make_data();
  auto shard = folder / "shards/train-00000.bin";
  auto bytes = read_file(shard);
  bytes[bytes.size() - 10] ^= 1;
  write_file_atomic(shard, bytes);
  auto said = run("train pretrain tiny.toml --data shards --out r");
  EXPECT_EQ(said.code, 1);
  EXPECT_NE(said.out.find("train-00000.bin"), std::string::npos) << said.out;
}

TEST_F(Program, TheWholeRecipeFromTextToReportAndGenerate) {
  make_data();
  auto said = run("speedrun --recipe tiny.toml --data text --out r --json");
  ASSERT_EQ(said.code, 0) << said.out;
  for (std::string file : {"run.json", "metrics.jsonl", "eval.json", "summary.json", "report.html", "samples/sample-1.txt"})
    EXPECT_TRUE(fs::exists(folder / "r" / file)) << file;
  auto again = run("speedrun --recipe tiny.toml --data text --out r --json");
  EXPECT_EQ(again.code, 0);
  auto text = run("generate --model r --prompt 'line ' --max-tokens 20 --seed 3 --json 2>/dev/null");
  EXPECT_EQ(text.code, 0);
  EXPECT_EQ(
      Json::parse(text.out)["ids"],
      Json::parse(run("generate --model r --prompt 'line ' --max-tokens 20 --seed 3 --json --threads 1 2>/dev/null").out)["ids"]);
  EXPECT_EQ(run("eval perplexity --model r --contexts 16 64").code, 0);
  EXPECT_EQ(run("inspect r --json").code, 0);
}

}  // namespace
}  // namespace fulgur
