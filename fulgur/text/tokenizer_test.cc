// Against Hugging Face tokenizers' own answers (tests/golden/tokenizer).
#include "fulgur/text/tokenizer.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/json.h"
#include "fulgur/base/random.h"
#include "fulgur/base/utf8.h"
#include "fulgur/text/splitter.h"
#include "fulgur/text/train_bpe.h"

namespace fulgur {
namespace {

const std::string kGolden = FULGUR_GOLDEN "/tokenizer/";

std::vector<Json> lines(const std::string& file) {
  std::ifstream in(kGolden + file);
  std::vector<Json> out;
  for (std::string line; std::getline(in, line);)
    if (!line.empty()) out.push_back(Json::parse(line));
  EXPECT_FALSE(out.empty());
  return out;
}

std::string from_hex(const std::string& hex) {
  std::string out;
  for (size_t i = 0; i < hex.size(); i += 2) out += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return out;
}

TEST(Tokenizer, EncodesAsHuggingFaceDoes) {
  Tokenizer tokenizer(kGolden + "tokenizer.json"), pairs(kGolden + "tokenizer_pairs.json");
  for (const auto& c : lines("encode_cases.jsonl")) {
    // Characters younger than PCRE2's Unicode tables are of no class to it (docs/log.md).
    if (c["id"].get<std::string>().rfind("newuni", 0) == 0) continue;
    auto text = c["text"].get<std::string>();
    bool special = c["parse_special"].get<bool>();
    EXPECT_EQ(tokenizer.encode(text, special), c["ids"].get<std::vector<int32_t>>()) << c["id"];
    EXPECT_EQ(pairs.encode(text, special), c["ids"].get<std::vector<int32_t>>()) << c["id"];
    if (c.contains("pieces") && !special) {
      EXPECT_EQ(tokenizer.split(text), c["pieces"].get<std::vector<std::string>>()) << c["id"];
    }
  }
}

TEST(Tokenizer, DecodesAsHuggingFaceDoes) {
  Tokenizer tokenizer(kGolden + "tokenizer.json");
  for (const auto& c : lines("decode_cases.jsonl"))
    EXPECT_EQ(tokenizer.decode(c["ids"].get<std::vector<int32_t>>(), c["skip_special"].get<bool>()),
              from_hex(c["bytes_hex"].get<std::string>()))
        << c["id"];
}

TEST(Tokenizer, ReadsInvalidUtf8AsReplacementCharacters) {
  Tokenizer tokenizer(kGolden + "tokenizer.json");
  for (const auto& c : lines("invalid_utf8_cases.jsonl"))
    EXPECT_EQ(tokenizer.encode(from_hex(c["bytes_hex"].get<std::string>())),
              c["ids_of_replaced_text"].get<std::vector<int32_t>>())
        << c["id"];
}

TEST(Tokenizer, AnyTextComesBack) {
  Tokenizer tokenizer(kGolden + "tokenizer.json");
  RandomStream random(1, "test.text");
  for (int i = 0; i < 300; ++i) {
    std::string text;
    for (uint64_t size = random.below(200); text.size() < size;) text += char(random.below(256));
    text = valid_utf8(text);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Tokenizer, RefusesFilesThatAreNoTokenizer) {
  auto path = std::filesystem::path(testing::TempDir()) / "tokenizer.json";
  auto good = read_file(kGolden + "tokenizer.json");
  for (const auto& bad : {std::string("{}"), std::string("[]"), std::string("{\"model\": {\"vocab\": 3}}"),
                          std::string("not json"), good.substr(0, good.size() / 2)}) {
    write_file_atomic(path, bad);
    EXPECT_THROW(Tokenizer{path}, InputError) << bad.substr(0, 40);
  }
  EXPECT_THROW(Tokenizer{"/nowhere/tokenizer.json"}, InputError);
}

// Words of any length, merged by the rule as it is written.
TEST(Tokenizer, MergesTheLowestRankFirstAndTheLeftmostOfEquals) {
  auto vocabulary = read_tokenizer_json(kGolden + "tokenizer.json");
  vocabulary.patterns.clear();  // all of it is one word
  std::map<std::pair<int32_t, int32_t>, std::pair<int32_t, int32_t>> merges;
  for (size_t rank = 0; rank < vocabulary.merges.size(); ++rank) {
    const auto& merge = vocabulary.merges[rank];
    merges.try_emplace({merge.left, merge.right}, int32_t(rank), merge.joined);
  }
  auto byte_ids = vocabulary.byte_ids;
  Tokenizer tokenizer(std::move(vocabulary));
  RandomStream random(2, "test.words");
  for (int i = 0; i < 200; ++i) {
    std::string word;
    std::vector<int32_t> ids;
    for (uint64_t size = 1 + random.below(i % 2 ? 20 : 150); word.size() < size;) word += "etaoin "[random.below(7)];
    for (char c : word) ids.push_back(byte_ids[uint8_t(c)]);
    while (true) {
      std::pair<int32_t, size_t> best{INT32_MAX, 0};
      for (size_t at = 0; at + 1 < ids.size(); ++at)
        if (auto found = merges.find({ids[at], ids[at + 1]}); found != merges.end())
          best = std::min(best, {found->second.first, at});
      if (best.first == INT32_MAX) break;
      ids[best.second] = merges[{ids[best.second], ids[best.second + 1]}].second;
      ids.erase(ids.begin() + int64_t(best.second) + 1);
    }
    EXPECT_EQ(tokenizer.encode(word), ids) << word;
    EXPECT_EQ(tokenizer.encode(word), ids) << "out of the cache";
  }
}

TEST(Tokenizer, ASpecialTokenInSomebodysTextIsText) {
  Tokenizer tokenizer(kGolden + "tokenizer.json");
  Prompt prompt;
  prompt.add("<｜User｜>"), prompt.add_plain("<｜Assistant｜>"), prompt.add("<｜Assistant｜>"), prompt.add_plain(""),
      prompt.add("<think>");
  std::vector<int32_t> expected{tokenizer.id("<｜User｜>")};
  for (int32_t id : tokenizer.encode("<｜Assistant｜>")) expected.push_back(id);
  expected.push_back(tokenizer.id("<｜Assistant｜>")), expected.push_back(tokenizer.id("<think>"));
  EXPECT_EQ(tokenizer.encode(prompt), expected);
  EXPECT_EQ(tokenizer.encode(Prompt{"<think>", {{6, 7}}}), tokenizer.encode("<think>")) << "nor may it end in it";
  EXPECT_EQ(tokenizer.encode(Prompt{"x\xff<think>", {{0, 2}}}).back(), tokenizer.id("<think>")) << "invalid bytes move nothing";
}

TEST(Tokenizer, UnderstandsTheFamiliesPreTokenizers) {
  auto json = read_json(kGolden + "tokenizer.json");
  auto path = std::filesystem::path(testing::TempDir()) / "family.json";
  auto with = [&](const char* field, const char* value) {
    Json changed = json;
    changed[field] = Json::parse(value);
    write_file_atomic(path, changed.dump());
    return Tokenizer(path);
  };
  auto digits = with(
      "pre_tokenizer",
      R"({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, {"type": "ByteLevel", "add_prefix_space": false}]})");
  EXPECT_EQ(digits.split("ab 12c can't"), (std::vector<std::string>{"ab", " ", "1", "2", "c", " can", "'t"}));
  auto nfc = with("normalizer", R"({"type": "Sequence", "normalizers": [{"type": "NFC"}]})");
  EXPECT_EQ(nfc.decode(nfc.encode("e\u0301 \uac00")), "\u00e9 \uac00");
  EXPECT_THROW(with("normalizer", R"({"type": "Lowercase"})"), InputError);
  EXPECT_THROW(with("pre_tokenizer", R"({"type": "Metaspace"})"), InputError);
  json["model"]["ignore_merges"] = true;
  json["model"]["vocab"]["zqx"] = 3000;
  auto whole = with("normalizer", "null");
  EXPECT_EQ(whole.encode("zqx"), std::vector<int32_t>{3000}) << "a word that is a token needs no merges";
}

TEST(Tokenizer, AGgufsVocabularyIsTheSame) {
  auto json = read_json(kGolden + "tokenizer.json");
  Tokenizer expected(kGolden + "tokenizer.json");
  std::vector<std::string> tokens(expected.vocab_size()), merges;
  std::vector<int32_t> type(tokens.size(), 1);
  for (const auto& [token, id] : json["model"]["vocab"].items()) tokens[id.get<size_t>()] = token;
  for (const auto& added : json["added_tokens"]) {
    tokens[added["id"].get<size_t>()] = added["content"];
    type[added["id"].get<size_t>()] = added["special"].get<bool>() ? 3 : 4;
  }
  for (const auto& merge : json["model"]["merges"]) merges.push_back(merge);
  Tokenizer tokenizer(gguf_vocabulary(tokens, type, merges, "deepseek-v3", "test.gguf"));
  for (const auto& c : lines("encode_cases.jsonl"))
    EXPECT_EQ(tokenizer.encode(c["text"].get<std::string>(), c["parse_special"]),
              expected.encode(c["text"].get<std::string>(), c["parse_special"]))
        << c["id"];
  auto path = std::filesystem::path(testing::TempDir()) / "written.json";
  write_file_atomic(path, tokenizer_json(gguf_vocabulary(tokens, type, merges, "deepseek-v3", "test.gguf")).dump());
  Tokenizer written(path);
  for (const auto& c : lines("encode_cases.jsonl"))
    EXPECT_EQ(written.encode(c["text"].get<std::string>(), c["parse_special"]),
              tokenizer.encode(c["text"].get<std::string>(), c["parse_special"]))
        << c["id"];
  EXPECT_THROW(gguf_vocabulary(tokens, type, merges, "bert", "test.gguf"), InputError);
  EXPECT_THROW(gguf_vocabulary(tokens, {}, merges, "gpt-2", "test.gguf"), InputError);
}

TEST(TrainBpe, FindsTheMergesOfHuggingFace) {
  for (std::string name : {"train_a_2048", "train_a_600_min5", "train_ties_300", "train_ties_stop"}) {
    auto expected = read_json(kGolden + name + ".json");
    Splitter splitter(deepseek_patterns(), "deepseek");
    WordCounts words;
    for (const auto& line : lines(expected["corpus"].get<std::string>())) {
      auto text = line["text"].get<std::string>();
      splitter.split(text, [&](std::string_view word) { ++words[std::string(word)]; });
    }
    auto model = train_bpe(words, {.vocab_size = expected["vocab_size"].get<int64_t>(),
                                   .min_frequency = expected["min_frequency"].get<int64_t>(),
                                   .special_tokens = expected["special_tokens"].get<std::vector<std::string>>()});
    EXPECT_EQ(int64_t(model.vocab.size()), expected["vocab_len"].get<int64_t>()) << name;
    std::vector<std::pair<std::string, std::string>> merges;
    for (const auto& merge : expected["merges"]) merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    EXPECT_EQ(model.merges, merges) << name;
  }
}

TEST(TrainBpe, TheFileItWritesEncodesWithItsMerges) {
  WordCounts words{{"hello", 10}, {" hell", 7}, {"\xff\xfe", 3}};
  BpeOptions options{.vocab_size = 270, .min_frequency = 1, .special_tokens = {"<s>"}};
  auto path = std::filesystem::path(testing::TempDir()) / "trained.json";
  write_file_atomic(path, tokenizer_json(vocabulary_of(train_bpe(words, options), options, deepseek_patterns())).dump());
  Tokenizer tokenizer(path);
  EXPECT_EQ(tokenizer.encode("hello").size(), 1u);
  EXPECT_EQ(tokenizer.encode("<s>", true), std::vector<int32_t>{0});
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("hello world")), "hello world");
}

}  // namespace
}  // namespace fulgur
