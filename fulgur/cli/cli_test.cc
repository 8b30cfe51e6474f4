// The program as people meet it: exit codes, one-line complaints, nothing half-written, runs that go on.
#include <fstream>

#include "fulgur/cli/program_test.h"

namespace fulgur {
namespace {

const std::string kGolden = FULGUR_GOLDEN "/model/";

TEST_F(Program, HelpOfEveryCommandHasAnExample) {
  for (std::string command : {"", "speedrun", "tokenizer train", "tokenizer encode", "tokenizer decode", "data pack",
                              "train pretrain", "train warmup", "train sparse", "forward", "generate", "inspect",
                              "eval perplexity", "report", "bench ops", "bench train", "bench model"}) {
    auto help = run(command + " --help");
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_NE(help.out.find("Example:\n  "), std::string::npos) << command << "\n" << help.out;
  }
}

TEST_F(Program, AWrongCommandLineExitsWith2AndSaysWhatIsExpected) {
  for (std::string wrong :
       {"", "fly", "forward", "forward --input a --output b --dump everything", "train pretrain", "inspect",
        "inspect model --plan recipe.toml", "generate --model x --prompt y --max-tokens -3", "--threads many inspect x",
        "speedrun --seed abc", "bench model --depth 2K,far", "bench model --shape huge"}) {
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
           {run("inspect nowhere"), "nowhere", "expected a model folder, a run directory or a GGUF file"},
           {run("inspect --plan none.toml"), "none.toml", ""},
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

TEST_F(Program, ABenchmarkIsComparedWithAnEarlierOneAndOnlyWithThat) {
  write_file_atomic(folder / "first.txt",
                    "a table\n{\"results\": [{\"name\": \"rope\", \"case\": \"N2048 H16 E192 P64\","
                    " \"threads\": 1, \"share\": 1e-6}]}\n");
  auto second = run("--threads 1 bench ops --filter rope --seconds 0.01 --against first.txt");
  EXPECT_EQ(second.code, 0) << second.out;
  EXPECT_NE(second.out.find("then"), std::string::npos) << second.out;
  write_file_atomic(folder / "nothing.txt", "{\"peaks\": 1}\n");
  for (std::string file : {"nothing.txt", "missing.txt"}) {
    auto said = run("bench ops --against " + file);
    EXPECT_EQ(said.code, 1) << said.out;
    EXPECT_NE(said.out.find(file), std::string::npos) << said.out;
  }
}

TEST_F(Program, APlanOfARecipeNamesEveryStagesPeak) {
  write_file_atomic(folder / "some.toml", "[pretrain]\ncontext = 64\nmicro_tokens = 128\nbatch_tokens = 512\n");
  auto stages = Json::parse(run("inspect --plan some.toml --json").out)["stages"];
  for (std::string stage : {"pretrain", "warmup", "sparse"}) EXPECT_GT(stages[stage]["planned_bytes"], 1000000) << stage;
  EXPECT_GT(stages["pretrain"]["gradient_sums"], 0);  // four passes a step
  auto table = run("inspect --plan some.toml");
  EXPECT_EQ(table.code, 0);
  EXPECT_NE(table.out.find("MTP layer"), std::string::npos) << table.out;
  write_file_atomic(folder / "odd.toml", "[sparse]\ncontext = 64\nmicro_tokens = 100\n");
  auto odd = run("inspect --plan odd.toml");
  EXPECT_EQ(odd.code, 1);
  EXPECT_NE(odd.out.find("[stage] micro_tokens: expected a multiple of context 64, got 100"), std::string::npos) << odd.out;
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
  EXPECT_NE(encoded.out.find("\"id\": 8, \"error\""), std::string::npos) << encoded.out;
}

TEST_F(Program, EncodeAndParseAreEachOthersWayBack) {
  auto encoded =
      run("encode --thinking-mode chat",
          "{\"id\": 1, \"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n{\"messages\": [{\"role\": \"x\"}]}\n");
  EXPECT_EQ(encoded.code, 0);
  EXPECT_NE(encoded.out.find("<｜User｜>Hi<｜Assistant｜></think>\"}"), std::string::npos) << encoded.out;
  EXPECT_NE(encoded.out.find("{\"error\": \"[messages] messages[0].role: expected system"), std::string::npos) << encoded.out;
  auto parsed =
      run("parse", "{\"id\": 2, \"completion\": \"Hm.</think>Hello!<｜end▁of▁sentence｜>\"}\n{\"completion\": \"Hm\"}\n");
  EXPECT_NE(parsed.out.find("{\"id\": 2, \"reasoning_content\": \"Hm.\", \"content\": \"Hello!\", \"tool_calls\": []}"),
            std::string::npos)
      << parsed.out;
  EXPECT_NE(parsed.out.find("{\"error\": \"[parse] byte 0: expected </think>"), std::string::npos) << parsed.out;
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
  // Packed it says the same, as it was packed and not otherwise; nothing else takes it.
  EXPECT_EQ(run("convert --model r --out packed --packed int8 --dtype bf16").code, 0);
  std::string one = " --prompt 'line ' --max-tokens 20 --json 2>/dev/null";
  auto ids = [&](const std::string& flags) { return Json::parse(run("generate " + flags + one).out)["ids"]; };
  EXPECT_EQ(ids("--model packed"), ids("--model r --weights-format int8 --dtype bf16"));
  auto otherwise = run("generate --model packed --dtype f32 --prompt a");
  EXPECT_EQ(otherwise.code, 2);
  EXPECT_NE(otherwise.out.find("--dtype: expected bf16, as this model was packed, got f32"), std::string::npos) << otherwise.out;
  EXPECT_NE(run("eval perplexity --model packed --data r/data").out.find("got packed ones"), std::string::npos);
  EXPECT_NE(run("convert --model r --out packed --packed int8").out.find("expected a folder that is not there yet"),
            std::string::npos);
  EXPECT_EQ(run("eval perplexity --model r --contexts 16 64").code, 0);
  EXPECT_EQ(run("inspect r --json").code, 0);
  auto here = Json::parse(run("inspect packed --context 64 --json").out)["here"];
  EXPECT_EQ(here["weights_format"], "int8");  // as it was packed
  int64_t header = int64_t(fs::file_size(folder / "packed/packed.safetensors")) - here["weight_bytes"].get<int64_t>();
  EXPECT_TRUE(header > 0 && header < 30000) << header;
  EXPECT_LT(here["tokens_per_second"]["decode"]["expected"], here["tokens_per_second"]["decode"]["at_most"]);
}

}  // namespace
}  // namespace fulgur
