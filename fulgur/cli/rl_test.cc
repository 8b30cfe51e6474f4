// Fine-tuning and reinforcement learning as people run them: exact, the same weights whatever happens, mistakes named.
#include <fstream>
#include <map>

#include "fulgur/cli/program_test.h"

namespace fulgur {
namespace {

using testing::HasSubstr;

// A tiny model that has gone through the whole recipe, a few steps of each stage.
class Reinforcement : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    make_data();
    auto stages = read_file(folder / "tiny.toml");
    for (std::string stage : {"1M", "64k"})
      for (size_t at; (at = stages.find("tokens = \"" + stage)) != std::string::npos;)
        stages.replace(at, 11 + stage.size(), "tokens = 5000");
    auto recipe = [&](const std::string& sft_tokens, int steps) {
      return cat(
          "demos = \"lookup\"\ndemo_count = 50\n", stages, "[model]\nmax_position_embeddings = 512\nindex_topk = 16\n",
          "[sft]\ntokens = \"", sft_tokens, "\"\ntext_share = 0\ncontext = 256\nbatch_tokens = 512\nmicro_tokens = 512\n",
          "lr = 3e-3\nwarmup_steps = 3\n[rl]\nsteps = ", steps, "\ntasks = \"reverse,lookup\"\nprompts = 4\ngroup = 4\n",
          "context = 256\nmax_tokens = 40\nmax_answers = 3\ntop_p = 0.95\nlr = 1e-3\ncheckpoint_every = 2\neval_tasks = 8\n",
          "length_slope = 0.01\n");
    };
    write_file_atomic(folder / "short.toml", recipe("16k", 1));
    write_file_atomic(folder / "tiny.toml", recipe("2M", 6));
    auto said = run("speedrun --recipe short.toml --data text --out base");
    ASSERT_EQ(said.code, 0) << said.out;
  }
  // And has learned the form of a tool's calls.
  void learn() {
    auto demos = run("tasks demos lookup --count 200 2>/dev/null");
    write_file_atomic(folder / "demos.jsonl", demos.out);
    auto said = run(sft("demos.jsonl", "sft"));
    ASSERT_EQ(said.code, 0) << said.out;
    EXPECT_THAT(said.out, HasSubstr("200 samples"));
    base = "sft";
  }
  std::string train(const std::string& out, const std::string& more = "") const {
    return cat("train rl tiny.toml --init ", base, " --out ", out, " ", more);
  }
  static std::string sft(const std::string& messages, const std::string& out) {
    return cat("train sft tiny.toml --init base --data base/data --out ", out, " --messages ", messages);
  }
  std::string base = "base";
  std::string weights(const std::string& out, int step = 6) {
    return read_file(folder / out / "checkpoints" / cat("rl-0000000", step) / "model.safetensors");
  }
  std::vector<Json> metrics(const std::string& out, const std::string& stage = "rl") {
    std::vector<Json> lines;
    std::ifstream file(folder / out / "metrics.jsonl");
    for (std::string line; std::getline(file, line);) {
      auto json = Json::parse(line);
      if (json["stage"] == stage) lines.push_back(json);
    }
    return lines;
  }
};

TEST_F(Reinforcement, EveryLogProbabilityIsTheSamplersAndTheWeightsDoNotDependOnThreads) {
  learn();
  auto said = run("--threads 1 " + train("one", "--tasks lookup"));
  ASSERT_EQ(said.code, 0) << said.out;
  ASSERT_EQ(run("--threads 2 " + train("two", "--tasks lookup")).code, 0);
  EXPECT_EQ(weights("one"), weights("two"));
  auto lines = metrics("one");
  ASSERT_EQ(lines.size(), 6u);
  for (const auto& line : lines) {
    EXPECT_EQ(line["mismatch"], 0) << line;
    EXPECT_EQ(line["ratio"], 1) << line;
  }
  EXPECT_GT(lines[0]["matched_tokens"], 100);
  EXPECT_LT(lines[0]["kept_mass"], 1);  // top-p was at work
  EXPECT_THAT(read_file(folder / "one/episodes/rl-00000000.jsonl"), HasSubstr("\"role\":\"tool\""));
  auto evals = metrics("one", "rl-eval");
  ASSERT_EQ(evals.size(), 2u);
  for (auto measure : {"kl", "recall", "mass"}) EXPECT_EQ(evals[1]["indexer"]["lookup"][measure].size(), 2u) << measure;
  EXPECT_THAT(read_file(folder / "base/report.html"), HasSubstr("behind step 1"));
  EXPECT_TRUE(fs::exists(folder / "one/episodes/rl-00000006.jsonl"));
  EXPECT_NE(weights("one"), weights("one", 4));
}

TEST_F(Reinforcement, KilledAtAnyTimeItGoesOnToTheSameWeights) {
  auto start = Clock::now();
  auto flags = "--updates 2 --eval-every 2";
  ASSERT_EQ(run(train("whole", flags)).code, 0);
  EXPECT_GT(kills_until_the_end(train("killed", flags), Clock::now() - start, 25), 0);
  EXPECT_EQ(weights("killed"), weights("whole"));
  auto without_clocks = [&](const std::string& out) {
    auto lines = metrics(out);
    for (auto& line : lines)
      for (auto clock : {"seconds", "rollout_seconds", "update_seconds", "rollout_tokens_per_second", "update_tokens_per_second"})
        line.erase(clock);
    return lines;
  };
  EXPECT_EQ(without_clocks("killed"), without_clocks("whole"));
  EXPECT_EQ(metrics("killed", "rl-eval"), metrics("whole", "rl-eval"));
}

// Episodes of up to 120 tokens in rounds of 15: most go on under other weights than those they began with.
TEST_F(Reinforcement, AheadOfItsStepEveryTokenIsStillItsOwnWeights) {
  auto flags = "--staleness 3 --round-tokens 15 --checkpoint-every 1 --keep-last 9 --eval-tasks 0";
  auto start = Clock::now();
  ASSERT_EQ(run("--threads 1 " + train("whole", flags)).code, 0);
  auto lasted = Clock::now() - start;
  auto lines = metrics("whole");
  ASSERT_EQ(lines.size(), 6u);
  for (const auto& line : lines) EXPECT_EQ(line["mismatch"], 0) << line;
  EXPECT_GT(lines[1]["matched_tokens"], 20);
  EXPECT_EQ(lines[0]["staleness"], 0);  // before the first update
  EXPECT_GT(lines[5]["staleness"], 1);
  EXPECT_LT(lines[5]["staleness"], 3);
  EXPECT_NE(lines[5]["ratio"], 1);
  EXPECT_GT(kills_until_the_end(train("killed", flags), lasted, 15), 0);
  EXPECT_EQ(weights("killed"), weights("whole"));
  auto said = run(ranks(2, train("together", flags)));
  EXPECT_THAT(said.out, HasSubstr("rank 1 exit 0"));
  EXPECT_EQ(weights("together"), weights("whole"));
  // What two ranks left open, one goes on with.
  for (auto step : {"4", "5", "6"}) fs::remove_all(folder / "together/checkpoints" / cat("rl-0000000", step));
  ASSERT_EQ(run(train("together", flags) + " --resume").code, 0);
  EXPECT_EQ(weights("together"), weights("whole"));
}

TEST_F(Reinforcement, StoredBatchesAreTrainedOnAgain) {
  ASSERT_EQ(run(train("kept", "--keep-batches true --eval-tasks 0")).code, 0);
  EXPECT_TRUE(fs::exists(folder / "kept/batches/rl-00000005-0.safetensors"));
  auto said = run(train("again", "--replay kept/batches --eval-tasks 0"));
  ASSERT_EQ(said.code, 0) << said.out;
  EXPECT_EQ(weights("again"), weights("kept"));
  // Over and over, where there are fewer than steps; of another shape, not at all.
  EXPECT_EQ(run(train("more", "--replay kept/batches --eval-tasks 0 --steps 8")).code, 0);
  said = run(train("other", "--replay kept/batches --group 8"));
  EXPECT_EQ(said.code, 1);
  EXPECT_THAT(said.out, HasSubstr("expected a batch of 4 times 8 attempts, got 16"));
  EXPECT_THAT(run(train("none", "--replay base")).out, HasSubstr("[rl] replay: expected a folder of batches"));
}

TEST_F(Reinforcement, GroupsThatTeachNothingAreDrawnAgain) {
  // Of answers this short nearly all are cut, and many groups are all wrong alike.
  ASSERT_EQ(run(train("once", "--steps 2 --eval-tasks 0 --length-slope 0 --max-tokens 12")).code, 0);
  ASSERT_EQ(run(train("again", "--steps 2 --eval-tasks 0 --length-slope 0 --max-tokens 12 --resample 3")).code, 0);
  auto once = metrics("once")[0], again = metrics("again")[0];
  EXPECT_LT(once["trained_groups"], 1);
  EXPECT_EQ(once["resampled_groups"], 0);
  EXPECT_GE(again["resampled_groups"], 1);
  EXPECT_GE(again["trained_groups"], once["trained_groups"]);
}

TEST_F(Reinforcement, TasksOfAFileAreVerifiedAsTheirLinesSay) {
  std::string lines;
  for (int i = 0; i < 40; ++i)
    lines += Json{{"prompt", cat("Say ", i)}, {"answer", i % 2 ? "e" : "[a-z ]"}, {"verify", "regex"}}.dump() + "\n";
  write_file_atomic(folder / "own.jsonl", lines);
  auto said = run(train("own", "--tasks own.jsonl --steps 2 --eval-tasks 4 --relative-length 0.5"));
  ASSERT_EQ(said.code, 0) << said.out;
  double invalid = 0, reward = 0;
  for (const auto& line : metrics("own")) invalid += line["invalid"].get<double>(), reward += line["reward"].get<double>();
  EXPECT_EQ(invalid, 0);
  EXPECT_NE(reward, 0);
}

TEST_F(Reinforcement, DifficultyFollowsThePassRate) {
  auto said = run(train("harder", "--tasks count:2-3,reverse:1-3 --eval-tasks 0 --steps 3"));
  ASSERT_EQ(said.code, 0) << said.out;
  auto lines = metrics("harder");
  EXPECT_EQ(lines[0]["difficulty"], Json({{"count", 2}, {"reverse", 1}}));
  EXPECT_EQ(lines[2]["difficulty"], Json({{"count", 2}, {"reverse", 1}}));  // nothing is right: it stays at the easiest
}

TEST_F(Reinforcement, TwoProcessesMakeTheWeightsOfOne) {
  auto flags = "--steps 2 --updates 2 --eval-tasks 0";
  ASSERT_EQ(run(train("alone", flags)).code, 0);
  auto said = run(ranks(2, train("together", flags)));
  EXPECT_THAT(said.out, HasSubstr("rank 0 exit 0"));
  EXPECT_THAT(said.out, HasSubstr("rank 1 exit 0"));
  EXPECT_EQ(weights("together", 2), weights("alone", 2));
  EXPECT_EQ(metrics("together")[1]["matched_tokens"], metrics("alone")[1]["matched_tokens"]);
}

TEST_F(Reinforcement, OutcomesOnDiskAreNotAskedForAgain) {
  ASSERT_EQ(run(train("a", "--steps 2 --eval-tasks 0")).code, 0);
  // The same run without its checkpoints, and with other outcomes on disk, learns from those.
  fs::create_directories(folder / "b");
  std::string changed;
  std::ifstream file(folder / "a/outcomes.jsonl");
  int line_number = 0;
  for (std::string line; std::getline(file, line);) {
    auto json = Json::parse(line);
    json["score"] = ++line_number % 2;
    changed += json.dump() + "\n";
  }
  EXPECT_EQ(line_number, 2 * 4 * 4);
  write_file_atomic(folder / "b/outcomes.jsonl", changed);
  auto said = run(train("b", "--steps 2 --eval-tasks 0"));
  ASSERT_EQ(said.code, 0) << said.out;
  EXPECT_EQ(metrics("b")[0]["score"], 0.5);
  EXPECT_NE(weights("a", 2), weights("b", 2));
}

TEST_F(Reinforcement, MistakesAreNamed) {
  struct Bad {
    std::string command, says;
    int code = 1;
  };
  write_file_atomic(folder / "bad.jsonl",
                    "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n"
                    "{\"messages\": [{\"role\": \"king\"}]}\n");
  write_file_atomic(folder / "mute.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n");
  write_file_atomic(
      folder / "long.jsonl",
      Json{{"messages", {{{"role", "user"}, {"content", std::string(3000, 'x')}}, {{"role", "assistant"}, {"content", "b"}}}}}
              .dump() +
          "\n");
  for (const Bad& bad : std::vector<Bad>{{sft("none.jsonl", "s"), "none.jsonl: expected a file of conversations"},
                                         {sft("bad.jsonl", "s"), "bad.jsonl:2: [messages] messages[0].role: expected system"},
                                         {sft("mute.jsonl", "s"), "mute.jsonl:1: [messages] expected an assistant's answer"},
                                         {sft("long.jsonl", "s"), "long.jsonl:1: [sft] expected a sample of at most 256 tokens"},
                                         {train("r", "--tasks chess"), "chess"},
                                         {train("r", "--tasks reverse:99"), "difficulty"},
                                         {train("r", "--group 1"), "[rl] group: expected 2 attempts or more, got 1"},
                                         {train("r", "--prompts 4 --updates 3"), "[rl] updates: expected a divisor of prompts 4"},
                                         {train("r", "--temperature 0"), "[rl] temperature"},
                                         {train("r", "--tasks reverse:3-1"), "name:low-high"},
                                         {train("r", "--round-tokens 9"), "[rl] round_tokens: expected a staleness"},
                                         {train("r", "--resample 1 --staleness 1"), "[rl] resample: expected staleness 0"},
                                         {train("r", "--sampler-weights int8"), "[rl] exact: expected false"},
                                         {train("r", "--keep-sampling-mask false"), "[rl] exact: expected false where"},
                                         {train("r", "--kl k9"), "[rl] kl: expected one of"},
                                         {train("r", "--exact maybe"), "--exact: expected true or false", 2},
                                         {train("r", "--context 30"), "expected fewer than 30 tokens"},
                                         {train("r", "--form verse"), "[tasks] form: expected plain, reasoning"},
                                         {train("r", "--form agent --tasks reverse"), "reverse: expected a task with tools"},
                                         {train("r", "--form plain,agent"), "[rl] form: expected one"},
                                         {"tasks demos lookup --forms reasoning", "lookup: expected a task without tools"},
                                         {"tasks demos chess", "chess"}}) {
    auto said = run(bad.command);
    EXPECT_EQ(said.code, bad.code) << bad.command << "\n" << said.out;
    EXPECT_THAT(said.out, HasSubstr(bad.says)) << bad.command;
  }
}

TEST_F(Reinforcement, EveryStabiliserCanBeSwitchedOnAndSaysWhatItDid) {
  // Groups of twelve: some answers of words at random end before they are cut, so that lengths, and rewards, differ.
  auto said =
      run(train("all",
                "--updates 4 --group 12 --max-tokens 60 --steps 2 --off-policy-delta 1e-9 --kl-coefficient 0.05 --clip-low 1e-3 "
                "--clip-high 1e-3 --lr 1e-2 --language 0.1 --eval-tasks 0 --keep-routing false --keep-selection false"));
  ASSERT_EQ(said.code, 0) << said.out;
  double masked = 0, clipped = 0, kl = 0;
  for (const auto& line : metrics("all")) {
    EXPECT_EQ(line["mismatch"], 0);
    EXPECT_NE(line["reward"], line["score"]);
    masked += line["masked"].get<double>(), clipped += line["clipped"].get<double>();
    kl += line["kl_ref"]["unbiased"].get<double>();
  }
  EXPECT_GT(masked, 0);
  EXPECT_GT(clipped, 0);
  EXPECT_GT(kl, 0);
  for (std::string correction : {"tis", "icepop", "geometric"})
    EXPECT_EQ(run(train(correction, "--updates 2 --steps 1 --eval-tasks 0 --correction " + correction)).code, 0);
}

}  // namespace
}  // namespace fulgur
