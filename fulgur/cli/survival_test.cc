// What can happen to a training: kill -9, signals, damaged and foreign checkpoints, full disks, bad numbers, other ranks.
#include <signal.h>

#include <fstream>

#include "fulgur/cli/program_test.h"

namespace fulgur {
namespace {

using testing::HasSubstr;

class Survival : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    make_data();
  }

  static std::string train(const std::string& out, const std::string& more = "", const std::string& tokens = "16128") {
    return cat("train pretrain tiny.toml --data shards --out ", out, " --tokens ", tokens, " ", more);
  }
  std::string weights(const std::string& out, const std::string& checkpoint = "pretrain-00000063") {
    return read_file(folder / out / "checkpoints" / checkpoint / "model.safetensors");
  }
  std::string moments(const std::string& out) {
    return read_file(folder / out / "checkpoints/pretrain-00000063/optimizer.safetensors");
  }
  // metrics.jsonl without what a clock says.
  std::vector<Json> metrics(const std::string& out) {
    std::vector<Json> lines;
    std::ifstream in(folder / out / "metrics.jsonl");
    for (std::string line; std::getline(in, line);) {
      lines.push_back(Json::parse(line));
      for (auto clock : {"seconds", "tokens_per_second", "share_of_peak", "rank_seconds"}) lines.back().erase(clock);
    }
    return lines;
  }
};

TEST_F(Survival, KilledAtAnyTimeTheSameRunGoesOnToTheSameWeightsMomentsAndRecords) {
  auto start = Clock::now();
  ASSERT_EQ(run(train("whole")).code, 0);
  auto whole = Clock::now() - start;  // kills are placed by it: a sanitized program is several times slower
  for (int percent : {30, 60}) {
    auto out = cat("killed-", percent);
    EXPECT_GT(kills_until_the_end(train(out), whole, percent), 0);
    EXPECT_EQ(weights(out), weights("whole"));
    EXPECT_EQ(moments(out), moments("whole"));
    EXPECT_EQ(metrics(out), metrics("whole"));
  }
  EXPECT_EQ(metrics("whole").size(), 63u);
}

TEST_F(Survival, SignalsWriteACheckpointSayHowToGoOnAndKeepTheirExitCode) {
  for (auto [signal, code] : std::vector<std::pair<std::string, int>>{{"INT", 130}, {"TERM", 143}}) {
    auto said = run(cat("train pretrain tiny.toml --data shards --out ", signal, " & child=$!; sleep 1.5; kill -", signal,
                        " $child; wait $child"));
    EXPECT_EQ(said.code, code) << said.out;
    EXPECT_THAT(said.out, HasSubstr("--resume goes on"));
    EXPECT_FALSE(fs::is_empty(folder / signal / "checkpoints"));
  }
  auto refused = run("train pretrain tiny.toml --data shards --out INT");
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.out, HasSubstr("--resume"));
}

TEST_F(Survival, ACheckpointOfOtherSettingsDataOrNumericPathIsRefusedByField) {
  auto go_on = [&](const std::string& more, const std::string& data = "shards") {
    return run(cat("train pretrain tiny.toml --out r --tokens 2560 --resume --data ", data, " ", more));
  };
  auto refused = [&](const Output& said, const std::string& field) {
    EXPECT_EQ(said.code, 1) << said.out;
    EXPECT_THAT(said.out, HasSubstr(field));
  };
  ASSERT_EQ(go_on("").code, 0);
  refused(go_on("--lr 1e-4"), "pretrain/lr: expected 0.003 as this run was begun with, got 0.0001");
  auto recipe = read_file(folder / "tiny.toml"), record = read_file(folder / "r/run.json");
  write_file_atomic(folder / "tiny.toml", recipe + "[model]\nrouted_scaling_factor = 2.5\n");
  refused(go_on(""), "model/routed_scaling_factor: expected");
  fs::remove(folder / "r/run.json");  // the checkpoint itself holds as much
  refused(go_on(""), "/model/routed_scaling_factor: expected 2.5 as in this run, got 1");
  write_file_atomic(folder / "tiny.toml", recipe);
  fs::remove(folder / "r/run.json");
  refused(go_on("--lr 1e-4"), "/stage/lr: expected 0.0001 as in this run, got 0.003");
  write_file_atomic(folder / "r/run.json", record);
  refused(go_on("--isa portable"), "/numeric_path/isa: expected \"portable\" as in this run, got ");
  ASSERT_EQ(run("data pack text/1.txt text/2.txt text/3.txt --tokenizer tok.json --out others --holdout-every 3").code, 0);
  refused(go_on("", "others"), "/data: expected");
  ASSERT_EQ(run("tokenizer train text --vocab-size 290 --out small.json").code, 0);
  ASSERT_EQ(run("data pack text --tokenizer small.json --out smaller --holdout-every 5").code, 0);
  refused(go_on("", "smaller"), "tokenizer.json: expected the tokenizer of the model");
  auto forced = go_on("--isa portable --force");
  EXPECT_EQ(forced.code, 0) << forced.out;
  EXPECT_THAT(forced.out, HasSubstr("going on: --force"));
  EXPECT_EQ(go_on("--keep-last 5 --checkpoint-every 3").code, 0);  // how a run is watched may change
}

TEST_F(Survival, ADamagedNewestCheckpointIsNamedAndTheOneBeforeIsUsed) {
  ASSERT_EQ(run(train("whole")).code, 0);
  auto begun = run(train("r") +
                   "& child=$!; while [ ! -e r/checkpoints/pretrain-00000015 ]; do sleep .02; done; kill -9 $child; wait $child");
  std::vector<fs::path> there;
  for (const auto& entry : fs::directory_iterator(folder / "r/checkpoints"))
    if (entry.path().filename().string().rfind("pretrain", 0) == 0 && entry.path().extension() != ".tmp")
      there.push_back(entry.path());
  std::sort(there.begin(), there.end());
  ASSERT_GE(there.size(), 2u);
  auto bytes = read_file(there.back() / "model.safetensors");
  bytes[bytes.size() - 5] ^= 4;
  write_file_atomic(there.back() / "model.safetensors", bytes);
  auto said = run(train("r", "--resume"));
  EXPECT_EQ(said.code, 0) << said.out;
  EXPECT_THAT(said.out, HasSubstr((there.back() / "model.safetensors").filename().string() + ": expected checksum"));
  EXPECT_THAT(said.out, HasSubstr("going on from"));
  EXPECT_EQ(weights("r"), weights("whole"));
  EXPECT_EQ(metrics("r"), metrics("whole"));
}

TEST_F(Survival, AFullDiskStopsTheRunInOneLineAndItGoesOnWhenThereIsRoom) {
  ASSERT_EQ(run(train("whole")).code, 0);
  // Files may grow to so many KiB: first the weights do not fit, then the records.
  for (int kib : {200, 8}) {
    auto out = cat("full-", kib);
    auto said = run(cat("--version; ulimit -f ", kib * 2, "; '" FULGUR_BINARY "' ", train(out)));
    EXPECT_EQ(said.code, 1) << said.out;
    EXPECT_THAT(said.out, HasSubstr("File too large")) << said.out;
    EXPECT_THAT(said.out, HasSubstr("make room"));
    auto resumed = run(train(out, "--resume"));
    EXPECT_EQ(resumed.code, 0) << resumed.out;
    EXPECT_EQ(weights(out), weights("whole"));
  }
}

// Sets one value of a checkpoint's tensor, and makes a plain model folder of it (no checksums).
void poison(const fs::path& from, const fs::path& to, const std::string& tensor, float value) {
  fs::create_directories(to);
  for (auto file : {"config.json", "tokenizer.json"}) fs::copy(from / file, to / file);
  auto bytes = read_file(from / "model.safetensors");
  uint64_t header;
  memcpy(&header, bytes.data(), 8);
  auto json = Json::parse(bytes.substr(8, header));
  uint64_t begin = json.at(tensor).at("data_offsets")[0], end = json.at(tensor).at("data_offsets")[1];
  for (uint64_t at = begin; at < end; at += 4) memcpy(bytes.data() + 8 + header + at, &value, 4);
  write_file_atomic(to / "model.safetensors", bytes);
}

TEST_F(Survival, ABadNumberStopsTheRunWithStepLayerOperationAndCheckpoint) {
  ASSERT_EQ(run(train("r", "", "2560")).code, 0);
  auto good = folder / "r/checkpoints/pretrain-00000010";
  poison(good, folder / "nan", "model.layers.1.self_attn.o_proj.weight", NAN);
  auto nan = run(train("a", "--init nan"));
  EXPECT_EQ(nan.code, 1);
  EXPECT_THAT(nan.out, HasSubstr("[train] stage pretrain step 0: expected a finite loss, got "));
  EXPECT_THAT(nan.out, HasSubstr("the parameter model.layers.1.self_attn.o_proj.weight itself is not finite"));
  EXPECT_THAT(nan.out, HasSubstr("the last good checkpoint is none"));
  poison(good, folder / "large", "model.layers.0.mlp.gate_proj.weight", 3e38f);
  auto large = run(train("b", "--init large"));
  EXPECT_EQ(large.code, 1);
  EXPECT_THAT(large.out, HasSubstr("the first operation to go wrong is fulgur::linear at model.layers.0.mlp.gate_proj.weight"));
  auto skipped = run(train("c", "--init large --on-bad-step skip"));
  EXPECT_EQ(skipped.code, 1);  // every step is bad
  EXPECT_THAT(skipped.out, HasSubstr("skipped"));
  EXPECT_EQ(metrics("c").size(), 10u);
}

TEST_F(Survival, ALossSpikeStopsTheRunAndMayBeSkipped) {
  auto spike = run(train("r", "--lr 30 --clip 1000 --warmup-steps 40 --spike 1.05"));
  EXPECT_EQ(spike.code, 1);
  EXPECT_THAT(spike.out, HasSubstr("expected a loss below 1.05 times the last ones' median"));
  EXPECT_THAT(spike.out, HasSubstr("the gradient stands out at "));
  EXPECT_THAT(spike.out, HasSubstr("the last good checkpoint is r/checkpoints/pretrain-000000"));
  auto skipped = run(train("r", "--lr 30 --clip 1000 --warmup-steps 40 --spike 1.05 --resume --on-bad-step skip"));
  EXPECT_THAT(skipped.out, HasSubstr("skipped"));
}

TEST_F(Survival, TwoProcessesMakeTheBitsOfOneAndAnyNumberGoesOn) {
  ASSERT_EQ(run(train("one")).code, 0);
  auto two = run(ranks(2, train("two")));
  EXPECT_THAT(two.out, testing::AllOf(HasSubstr("rank 0 exit 0"), HasSubstr("rank 1 exit 0")));
  EXPECT_EQ(weights("two"), weights("one"));
  EXPECT_EQ(metrics("two"), metrics("one"));
  // 2 -> 1 -> 2, each leaving at a signal or a kill.
  auto until = [](int step) { return cat("while [ ! -e m/checkpoints/pretrain-000000", step, " ]; do sleep .02; done; "); };
  run(ranks(2, train("m"), until(10) + "kill -TERM $p0;"));
  run(train("m", "--resume") + "& child=$!; " + until(30) + "kill -9 $child; wait $child");
  auto last = run(ranks(2, train("m", "--resume")));
  EXPECT_THAT(last.out, HasSubstr("rank 1 exit 0"));
  EXPECT_EQ(weights("m"), weights("one"));
  EXPECT_EQ(moments("m"), moments("one"));
  EXPECT_EQ(metrics("m"), metrics("one"));
}

TEST_F(Survival, ADeadARestingAndAFailingRankAreNamed) {
  auto until = [](const std::string& out) {
    return cat("while [ ! -e ", out, "/checkpoints/pretrain-00000005 ]; do sleep .02; done; ");
  };
  auto dead = run(ranks(2, train("a", "--silence 2", "1M"), until("a") + "kill -9 $p1;"));
  EXPECT_THAT(dead.out, HasSubstr("rank 0 exit 1"));
  EXPECT_THAT(dead.out, testing::ContainsRegex("\\[parallel\\] rank 1 of 2 \\(.*, process [0-9]+\\): expected a sign of life"));
  auto resting =
      run(ranks(2, train("b", "--silence 2", "1M"), until("b") + "kill -STOP $p1; wait $p0; echo rank 0 exit $?; kill -9 $p1;"));
  EXPECT_THAT(resting.out, HasSubstr("rank 0 exit 1"));
  EXPECT_THAT(resting.out, HasSubstr("rank 1 of 2"));
  auto failing = run(ranks(2, train("c", "--lr 30 --clip 1000 --warmup-steps 40 --spike 1.05")));
  EXPECT_THAT(failing.out, testing::AllOf(HasSubstr("rank 0 exit 1"), HasSubstr("rank 1 exit 1"), HasSubstr("rank 0 of 2")));
  auto alone =
      run(cat("--version; RANK=1 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=1 '" FULGUR_BINARY "' ", train("d", "--meet 1")));
  EXPECT_EQ(alone.code, 1);
  EXPECT_THAT(alone.out, HasSubstr("expected 2 ranks to meet at 127.0.0.1:1"));
  auto uneven = run(ranks(3, train("e")));
  EXPECT_THAT(uneven.out, HasSubstr("expected a multiple of 3 ranks, got 2"));
}

}  // namespace
}  // namespace fulgur
