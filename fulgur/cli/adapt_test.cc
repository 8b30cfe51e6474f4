// Sparse attention for a dense model, as people meet it: what comes out, what kill -9 and several processes change (nothing), and
// what is said to those whose model or text does not fit.
#include "fulgur/cli/program_test.h"

namespace fulgur {
namespace {

using testing::HasSubstr;

class Adapting : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    make_data();
    make_model();
    for (const char* kind : {"some", "others"}) fs::create_directories(folder / kind);
    for (int i = 0; i < 20; ++i)
      fs::rename(folder / "text" / cat(i, ".txt"), folder / (i % 2 ? "some" : "others") / cat(i, ".txt"));
  }

  // A Llama of two layers with random weights.
  void make_model() {
    fs::create_directories(folder / "model");
    fs::copy(folder / "tok.json", folder / "model/tokenizer.json");
    Json config = {{"model_type", "llama"},
                   {"vocab_size", 300},
                   {"hidden_size", 32},
                   {"intermediate_size", 48},
                   {"num_hidden_layers", 2},
                   {"num_attention_heads", 4},
                   {"num_key_value_heads", 2},
                   {"rms_norm_eps", 1e-6},
                   {"max_position_embeddings", 256},
                   {"rope_theta", 10000},
                   {"tie_word_embeddings", true},
                   {"hidden_act", "silu"},
                   {"bos_token_id", 0},
                   {"eos_token_id", 1}};
    write_file_atomic(folder / "model/config.json", config.dump());
    Json header = Json::object();
    std::string data;
    uint32_t state = 1;
    auto add = [&](const std::string& name, std::vector<int64_t> shape) {
      int64_t size = 1, begin = int64_t(data.size());
      for (int64_t extent : shape) size *= extent;
      for (int64_t i = 0; i < size; ++i) {
        state = state * 1664525 + 1013904223;
        float value = shape.size() == 1 ? 1.0f : (float(state >> 8) / float(1 << 24) - 0.5f) * 0.6f;
        data.append(reinterpret_cast<const char*>(&value), 4);
      }
      header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, begin + 4 * size}}};
    };
    add("model.embed_tokens.weight", {300, 32}), add("model.norm.weight", {32});
    for (int i = 0; i < 2; ++i) {
      auto at = cat("model.layers.", i, ".");
      for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) add(at + norm + ".weight", {32});
      add(at + "self_attn.q_proj.weight", {32, 32}), add(at + "self_attn.o_proj.weight", {32, 32});
      add(at + "self_attn.k_proj.weight", {16, 32}), add(at + "self_attn.v_proj.weight", {16, 32});
      add(at + "mlp.gate_proj.weight", {48, 32}), add(at + "mlp.up_proj.weight", {48, 32}),
          add(at + "mlp.down_proj.weight", {32, 48});
    }
    auto text = header.dump();
    uint64_t size = text.size();
    write_file_atomic(folder / "model/model.safetensors", std::string(reinterpret_cast<const char*>(&size), 8) + text + data);
  }

  static std::string adapt(const std::string& out, const std::string& more = "") {
    return cat("adapt --model model --data some others --out ", out,
               " --context 128 --sequences 12 --batch 2 --look-every 2 --rows 32 ", "--documents 2 --sparse-tokens 512 --twin ",
               more);
  }
  // All that does not depend on a clock.
  std::pair<std::string, Json> made(const std::string& out) {
    auto record = read_json(folder / out / "adapt.json");
    for (auto key : {"machine", "options"}) record.erase(key);
    return {read_file(folder / out / "model.safetensors"), record};
  }
};

TEST_F(Adapting, GivesAModelThatRunsWithACardAndEveryFigure) {
  auto said = run(adapt("out"));
  ASSERT_EQ(said.code, 0) << said.out;
  for (const char* part :
       {"plan      ", "keys of 128 keep", "all: 4 documents of 128 tokens", "others: 2 documents", "beyond a dense twin's"})
    EXPECT_THAT(said.out, HasSubstr(part));
  EXPECT_FALSE(fs::exists(folder / "out.work"));
  EXPECT_THAT(read_file(folder / "out/README.md"), HasSubstr("chooses the 16 keys"));
  auto config = read_json(folder / "out/config.json");
  EXPECT_EQ(config["index_keys"], "tied");
  EXPECT_EQ(config["index_topk"], 16);
  for (const char* attention : {"sparse", "dense"})
    EXPECT_EQ(run(cat("generate --model out --prompt 'line ' --max-tokens 8 --attention ", attention)).code, 0) << attention;
  auto needles = run("--json eval needles --model out --contexts 250 --keys 1 --samples 3");
  EXPECT_EQ(needles.code, 0) << needles.out;
  auto again = run(adapt("out"));  // nothing is left to do
  EXPECT_EQ(again.code, 0) << again.out;
  EXPECT_THAT(again.out, HasSubstr("all: 4 documents of 128 tokens"));
  EXPECT_THAT(run(adapt("out", "--seed 3")).out, HasSubstr("seed: expected 1 as this run was begun with, got 3"));
  EXPECT_THAT(run(adapt("out", "--measure 64")).out, HasSubstr("expected documents of 64 tokens, got others"));
  EXPECT_THAT(run(adapt("model")).out, HasSubstr("expected a folder that is not there yet"));
}

TEST_F(Adapting, KilledAtAnyTimeItGoesOnToTheSameModelAndFigures) {
  auto start = Clock::now();
  ASSERT_EQ(run(adapt("whole")).code, 0);
  auto whole = Clock::now() - start;
  for (int percent : {25, 55}) {
    auto out = cat("killed-", percent);
    EXPECT_GT(kills_until_the_end(adapt(out), whole, percent, ""), 0);
    EXPECT_EQ(made(out), made("whole"));
  }
  auto stopped =
      run(adapt("stopped") + "& child=$!; while [ ! -e stopped.work/checkpoints/teach-00000002 ]; do sleep .02; done; " +
          "kill -INT $child; wait $child");
  EXPECT_EQ(stopped.code, 130) << stopped.out;
  EXPECT_THAT(stopped.out, HasSubstr("the same command goes on"));
  auto other = run(adapt("stopped", "--lr 1e-3"));
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.out, HasSubstr("lr: expected 0.003 as this run was begun with, got 0.001"));
  ASSERT_EQ(run(adapt("stopped")).code, 0);
  EXPECT_EQ(made("stopped"), made("whole"));
}

TEST_F(Adapting, TwoProcessesMakeTheIndexersOfOne) {
  auto command = [&](const std::string& out, int batch = 2) {
    return cat("adapt --model model --data some --out ", out,
               " --context 128 --sequences 6 --rows 32 --measure 64 --sparse-tokens 512 --documents 1 --batch ", batch);
  };
  ASSERT_EQ(run(command("one")).code, 0);
  auto two = run(ranks(2, command("two")));
  EXPECT_THAT(two.out, testing::AllOf(HasSubstr("rank 0 exit 0"), HasSubstr("rank 1 exit 0"))) << two.out;
  EXPECT_EQ(made("two").first, made("one").first);
  auto uneven = run(ranks(2, command("three", 3)));
  EXPECT_THAT(uneven.out, HasSubstr("expected a multiple of 2 ranks, got 3"));
}

TEST_F(Adapting, WhatDoesNotFitIsSaidBeforeTheStart) {
  auto refused = [&](const std::string& flags, const std::string& what, int code = 1) {
    auto said = run("adapt --out o " + flags);
    EXPECT_EQ(said.code, code) << said.out;
    EXPECT_THAT(said.out, HasSubstr(what)) << flags;
    EXPECT_FALSE(fs::exists(folder / "o"));
    fs::remove_all(folder / "o.work");
  };
  std::string usual = "--model model --data some ";
  refused(usual + "--context 512", "--context: expected at most the model's 256 tokens, got 512");
  refused(usual + "--context 128 --measure 300", "--measure: expected at most the model's 256 tokens, got 300");
  refused(usual + "--context 256 --sequences 900", "expected 900 sequences of 256 tokens, got ");
  refused(usual + "--context 128 --index-n-heads 3", "index_n_heads: expected a multiple of 2 heads of keys, got 3");
  refused(usual + "--context 128 --index-keys glued", "--index-keys", 2);
  refused(usual + "--context 128 --sparse-tokens many", "--sparse-tokens: expected a number", 2);
  refused("--model model --data nowhere", "nowhere", 2);
  fs::create_directories(folder / "short");
  for (int i = 0; i < 400; ++i) write_file_atomic(folder / "short" / cat(i, ".txt"), "a few words of text\n");
  refused("--model model --data short --context 128 --sequences 2",
          "expected held-out documents of 128 tokens or more, got none: the longest has ");
  auto config = read_json(folder / "model/config.json");
  config["model_type"] = "mamba";
  write_file_atomic(folder / "model/config.json", config.dump());
  refused(usual, "model_type: expected deepseek_v32, deepseek_v3 or llama, got \"mamba\"");
}

TEST_F(Adapting, ThePlanAloneWritesNothing) {
  auto said = run(adapt("out", "--plan"));
  EXPECT_EQ(said.code, 0) << said.out;
  EXPECT_THAT(said.out, testing::AllOf(HasSubstr("plan      "), HasSubstr("  sparse  ")));
  EXPECT_FALSE(fs::exists(folder / "out.work"));
}

}  // namespace
}  // namespace fulgur
