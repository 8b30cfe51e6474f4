// The plan of a step's memory against the arena: sizes all different, so that no term can hide behind another.
#include "fulgur/train/plan.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/ops/arena.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/train/optimizer.h"
#include "fulgur/train/step.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 300, c.hidden_size = 48, c.intermediate_size = 160, c.moe_intermediate_size = 40, c.num_hidden_layers = 3;
  c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 1, c.num_attention_heads = 3, c.q_lora_rank = 28, c.kv_lora_rank = 36;
  c.qk_nope_head_dim = 20, c.v_head_dim = 24, c.qk_rope_head_dim = 8, c.n_routed_experts = 6, c.n_shared_experts = 1;
  c.num_experts_per_tok = 2, c.index_n_heads = 2, c.index_head_dim = 16, c.index_topk = 12, c.max_position_embeddings = 64;
  return c;
}

TrainBatch batch_of(int64_t sequences, int64_t context) {
  auto tokens = at::randint(257, {sequences * context}).to(at::kInt);
  return {pack_documents(tokens, std::vector<int64_t>(sequences, context)), tokens.roll(-1), tokens.roll(-2),
          (at::arange(sequences + 1) * context).to(at::kInt)};
}

class Plan : public testing::Test {
 protected:
  void SetUp() override {
    if (!install_arena()) GTEST_SKIP() << "no arena";
    fs::create_directories(folder);
    BpeOptions options{.vocab_size = 257, .special_tokens = {"<eos>"}};
    write_file_atomic(folder / "tokenizer.json",
                      tokenizer_json(vocabulary_of(train_bpe({}, options), options, deepseek_patterns())).dump());
  }
  void TearDown() override { fs::remove_all(folder); }

  // Peak of the second step in the arena.
  int64_t measured(const ModelConfig& config, const StageConfig& stage) {
    auto before = arena_use().used;
    Tokenizer tokenizer(folder / "tokenizer.json");
    Transformer model(config, init_weights(config, 1));
    Optimizer optimizer(model.weights(), stage);
    std::vector<TrainBatch> parts(stage.batch_tokens / stage.micro_tokens,
                                  batch_of(stage.micro_tokens / stage.context, stage.context));
    ProcessGroup alone;
    for (int64_t i = 0; i < 2; ++i) {
      reset_arena_peak();
      accumulate_gradients(model, stage, parts, tokenizer, alone);
      optimizer.step(i, optimizer.norms());
    }
    return arena_use().peak - before;
  }

  void expect_close(const ModelConfig& config, StageConfig stage, const std::string& what) {
    for (auto kind : {StageKind::pretrain, StageKind::warmup, StageKind::sparse}) {
      stage.kind = kind;
      auto planned = double(plan_step(config, stage).peak()), peak = double(measured(config, stage));
      EXPECT_NEAR(planned / peak, 1, 0.05) << what << ", " << stage_name(kind) << ": planned " << planned << ", measured "
                                           << peak;
    }
  }

  StageConfig stage{.tokens = 1 << 20, .context = 64, .batch_tokens = 512, .micro_tokens = 512};
  fs::path folder = fs::temp_directory_path() / cat("fulgur-plan-", getpid());
};

TEST_F(Plan, IsWithinATwentiethOfTheArenasPeakInEveryStage) { expect_close(small_config(), stage, "f32"); }

TEST_F(Plan, HoldsInBf16InPartsAndWithoutMtp) {
  auto bf16 = stage, parts = stage;
  bf16.dtype = "bf16", parts.batch_tokens = 4 * parts.micro_tokens;
  auto without = small_config(), routed = small_config();
  without.num_nextn_predict_layers = 0;
  routed.first_k_dense_replace = 0, routed.num_experts_per_tok = 4;
  expect_close(small_config(), bf16, "bf16");
  expect_close(small_config(), parts, "four parts");
  expect_close(without, stage, "no MTP");
  expect_close(routed, stage, "4 of 6 experts in every layer");
}

// Where the vocabulary or the attention outgrows the experts, the peak lies elsewhere.
TEST_F(Plan, FollowsThePeakToTheLogitsAndToTheAttention) {
  auto words = small_config(), heads = small_config();
  words.vocab_size = 6000;
  heads.num_attention_heads = 12, heads.kv_lora_rank = 64;
  expect_close(words, stage, "large vocabulary");
  expect_close(heads, stage, "many heads");
  stage.kind = StageKind::sparse;
  EXPECT_EQ(plan_step(words, stage).highest().name.rfind("logits", 0), 0u) << plan_step(words, stage).highest().name;
  EXPECT_EQ(plan_step(heads, stage).highest().name.rfind("attention", 0), 0u) << plan_step(heads, stage).highest().name;
}

TEST_F(Plan, HoldsForGroupedQueryAttention) {
  ModelConfig c;
  c.model_type = "llama", c.tie_word_embeddings = true;
  c.vocab_size = 300, c.hidden_size = 48, c.intermediate_size = 160, c.num_hidden_layers = c.first_k_dense_replace = 3;
  c.num_attention_heads = 6, c.num_key_value_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 16, c.max_position_embeddings = 64;
  c.index_topk = 12, c.index_n_heads = 6, c.index_head_dim = 16;
  for (const char* keys : {"tied", "own"}) {
    c.index_keys = keys;
    expect_close(c, stage, cat("llama, ", keys));
  }
}

TEST_F(Plan, AModelWithoutIndexerHasOneStageOnly) {
  auto config = small_config();
  config.model_type = "deepseek_v3";
  EXPECT_GT(plan_step(config, stage).peak(), 0);
  stage.kind = StageKind::warmup;
  EXPECT_THROW(plan_step(config, stage), InputError);
}

}  // namespace
}  // namespace fulgur
