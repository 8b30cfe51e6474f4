// Schedules, batches and the optimiser, without a model run: those of whole runs are in cli_test.cc.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <numeric>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/optimizer.h"
#include "fulgur/train/step.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

StageConfig stage(const std::string& schedule) {
  StageConfig c;
  c.tokens = 100 * c.batch_tokens, c.schedule = schedule, c.warmup_steps = 10;
  return c;
}

TEST(Schedule, EveryOneRisesLinearlyHoldsAndEndsWhereItSays) {
  for (std::string name : {"constant", "cosine", "wsd", "linear"}) {
    auto c = stage(name);
    EXPECT_DOUBLE_EQ(schedule_share(c, 0), 0.1) << name;
    EXPECT_DOUBLE_EQ(schedule_share(c, 9), 1) << name;
    EXPECT_NEAR(schedule_share(c, 99), name == "constant" ? 1 : c.final_lr, 1e-12) << name;
    for (int64_t step = 11; step < 100; ++step) EXPECT_LE(schedule_share(c, step), schedule_share(c, step - 1)) << name;
  }
  EXPECT_DOUBLE_EQ(schedule_share(stage("wsd"), 70), 1);  // the last 30 % decay
  EXPECT_LT(schedule_share(stage("wsd"), 71), 1);
  EXPECT_NEAR(schedule_share(stage("cosine"), 10 + 89 / 2), (1 + 0.05) / 2, 0.01);
  EXPECT_THROW(schedule_share(stage("square"), 50), InputError);
}

TEST(Stage, ImpossibleNumbersAreNamed) {
  auto says = [](auto change) {
    auto c = stage("wsd");
    change(c);
    try {
      validate(c);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  EXPECT_EQ(says([](auto&) {}), "nothing");
  EXPECT_NE(says([](auto& c) { c.batch_tokens = 5000; }).find("expected a multiple of micro_tokens 4096, got 5000"),
            std::string::npos);
  EXPECT_NE(says([](auto& c) { c.lr = NAN; }).find("[stage] lr: expected a positive number"), std::string::npos);
  EXPECT_NE(says([](auto& c) { c.beta2 = 1.5; }).find("beta2: expected a number from 0 to 1"), std::string::npos);
}

// Shards of documents whose tokens name their document: any batch can be checked against what was packed.
class BatchesTest : public testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(folder / "text");
    BpeOptions options{.vocab_size = 258, .special_tokens = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"}};
    write_file_atomic(folder / "tokenizer.json",
                      tokenizer_json(vocabulary_of(train_bpe({}, options), options, deepseek_patterns())).dump());
    for (int i = 0; i < 30; ++i) {
      auto name = cat(i < 10 ? "0" : "", i);
      write_file_atomic(folder / "text" / (name + ".txt"), std::string(1 + i * 7 % 90, char('A' + i)));
    }
    pack({.inputs = {folder / "text"}, .tokenizer = folder / "tokenizer.json", .out = folder, .holdout_every = 10},
         [](int64_t, int64_t) {});
  }
  void TearDown() override { fs::remove_all(folder); }

  fs::path folder = fs::temp_directory_path() / cat("fulgur-batches-", getpid());
};

TEST_F(BatchesTest, AttentionPositionsAndTargetsStayWithinOneDocument) {
  TokenShards shards(folder, "train");
  Batches batches(shards, 16, 1);
  auto b = batches.get(0, batches.sequences_per_epoch());
  const int* token = b.batch.tokens_N.const_data_ptr<int>();
  const int* position = b.batch.positions_N.const_data_ptr<int>();
  const int* visible = b.batch.visible_N2.const_data_ptr<int>();
  const int *next = b.next_N.const_data_ptr<int>(), *next2 = b.next2_N.const_data_ptr<int>();
  int64_t N = b.batch.tokens_N.size(0);
  for (int64_t i = 0; i < N; ++i) {
    EXPECT_EQ(visible[2 * i], i - position[i]);
    EXPECT_EQ(visible[2 * i + 1], i + 1);
    bool follows = i + 1 < N && position[i + 1] == position[i] + 1,
         twice = follows && i + 2 < N && position[i + 2] == position[i] + 2;
    EXPECT_TRUE(!follows || next[i] == token[i + 1]);
    EXPECT_TRUE(!twice || next2[i] == token[i + 2]);
    for (int64_t key = visible[2 * i]; key < i; ++key)  // letters of one document only
      EXPECT_TRUE(token[key] <= 1 || token[i] <= 1 || token[key] == token[i]);
  }
}

TEST_F(BatchesTest, AnEpochHoldsEveryTokenAtMostOnceAndLosesFew) {
  TokenShards shards(folder, "train");
  Batches batches(shards, 16, 1);
  std::map<int, int64_t> packed, seen;
  for (int64_t d = 0; d < shards.documents(); ++d) {
    std::vector<int32_t> tokens(shards.length(d));
    shards.read(d, 0, shards.length(d), tokens.data());
    for (int id : tokens) ++packed[id];
  }
  auto b = batches.get(0, batches.sequences_per_epoch());
  for (int64_t i = 0; i < b.batch.tokens_N.size(0); ++i) ++seen[b.batch.tokens_N[i].item<int>()];
  for (auto [id, count] : seen) EXPECT_LE(count, packed[id]) << id;
  EXPECT_GT(b.batch.tokens_N.size(0), shards.tokens() * 8 / 10);
}

TEST_F(BatchesTest, AreAFunctionOfSeedAndNumberHoweverTheyAreAskedFor) {
  TokenShards shards(folder, "train");
  Batches one(shards, 16, 7), other(shards, 16, 7), another(shards, 16, 8);
  int64_t far = 3 * one.sequences_per_epoch() + 2;
  auto whole = one.get(far, 4);
  auto last = other.get(far + 3, 1), back = (other.get(0, 1), other.get(far, 1));
  EXPECT_TRUE(at::equal(last.batch.tokens_N, whole.batch.tokens_N.narrow(0, 48, 16)));
  EXPECT_TRUE(at::equal(back.batch.tokens_N, whole.batch.tokens_N.narrow(0, 0, 16)));
  EXPECT_FALSE(at::equal(another.get(far, 4).batch.tokens_N, whole.batch.tokens_N));
}

TEST_F(BatchesTest, ALeadInIsReadOnceInWholeStepsBeforeTheRest) {
  TokenShards shards(folder, "train");
  Batches first(shards, 16, 7), rest(shards, 16, 1);
  int64_t whole = first.sequences_per_epoch() / 2 * 2;
  ASSERT_GT(whole, 0);
  LeadIn source(folder, rest, 16, 7, 2);
  auto tokens = [](BatchSource& from, int64_t at) { return from.get(at, 2).batch.tokens_N; };
  for (int64_t i = 0; i < whole; i += 2) EXPECT_TRUE(at::equal(tokens(source, i), tokens(first, i))) << i;
  int64_t epoch = rest.sequences_per_epoch();
  for (int64_t i = 0; i < epoch + 4; i += 2) EXPECT_TRUE(at::equal(tokens(source, whole + i), tokens(rest, i))) << i;
  EXPECT_FALSE(source.is_text(whole / 2 - 1));
  EXPECT_TRUE(source.is_text(whole / 2));
  EXPECT_EQ(source.epoch(whole - 1), 0);
  EXPECT_EQ(source.epoch(whole + epoch - 1), 0);
  EXPECT_EQ(source.epoch(whole + epoch), 1);
}

ModelConfig tiny_config() {
  ModelConfig c;
  c.vocab_size = 40, c.hidden_size = 16, c.intermediate_size = 24, c.moe_intermediate_size = 8, c.num_hidden_layers = 2;
  c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 1, c.num_attention_heads = 2, c.q_lora_rank = 8, c.kv_lora_rank = 8;
  c.qk_nope_head_dim = c.v_head_dim = 8, c.qk_rope_head_dim = 4, c.n_routed_experts = 4, c.n_shared_experts = 1;
  c.num_experts_per_tok = 2, c.index_n_heads = 2, c.index_head_dim = 8, c.index_topk = 4, c.max_position_embeddings = 32;
  return c;
}

// Which parameters a stage trains: the indexer alone, all but it, or both with a clip and a rate each.
TEST(Optimizer, TrainsWhatItsStageTrainsAndClipsTheIndexerOnItsOwn) {
  for (auto kind : {StageKind::pretrain, StageKind::warmup, StageKind::sparse}) {
    auto weights = init_weights(tiny_config(), 1);
    StageConfig c = stage("constant");
    c.kind = kind, c.warmup_steps = 0, c.weight_decay = 0, c.lr = 1e-3, c.indexer_lr = 2e-3;
    Optimizer optimizer(weights, c);
    std::map<std::string, at::Tensor> before;
    for (auto& p : parameters(weights)) {
      before[p.name] = p.tensor->detach().clone();
      if (p.tensor->requires_grad()) p.tensor->mutable_grad() = at::full_like(*p.tensor, p.indexer() ? 1000.0 : 0.01);
    }
    auto norms = optimizer.norms();
    optimizer.step(0, norms);
    for (auto& p : parameters(weights)) {
      double moved = (p.tensor->detach() - before[p.name]).abs().max().item<double>();
      bool wanted = p.trained() && (kind == StageKind::sparse || p.indexer() == (kind == StageKind::warmup));
      // Adam's first step is the rate, whatever the gradient's size: had the indexer's norm clipped the model's, eps would show.
      EXPECT_NEAR(moved, wanted ? (p.indexer() ? 2e-3 : 1e-3) : 0, 1e-5) << p.name;
    }
    EXPECT_EQ(norms.indexer > 1000, kind != StageKind::pretrain);
    EXPECT_EQ(norms.model > 0, kind != StageKind::warmup);
  }
}

// After each step an expert above the mean load loses bias, one below gains it (spec A.4).
TEST(Balance, BiasMovesAgainstTheLoad) {
  auto weights = init_weights(tiny_config(), 1);
  StageConfig c;
  StepSums sums;
  sums.load = {{}, {10, 2, 6, 6}, {}};
  balance_experts(weights, c, sums);
  auto bias = weights.layers[1].moe->e_score_correction_bias;
  EXPECT_TRUE(at::allclose(bias, at::tensor({-1e-3f, 1e-3f, 0.f, 0.f})));
}

}  // namespace
}  // namespace fulgur
