#include <gtest/gtest.h>

#include <fstream>

#include "fulgur/base/error.h"
#include "fulgur/train/data/documents.h"
#include "fulgur/train/data/shards.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

struct Folder {
  fs::path path = fs::path(testing::TempDir()) / ("data-" + std::to_string(::getpid()));
  Folder() { fs::remove_all(path), fs::create_directories(path); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() { fs::remove_all(path); }
  void put(const std::string& name, const std::string& text) const { write_file_atomic(path / name, text); }
};

std::vector<Document> all(const fs::path& path) {
  std::vector<Document> out;
  for_each_document(path, [&](Document d) { out.push_back(d); });
  return out;
}

TEST(Documents, ComeInOrderFromEveryKindOfFile) {
  Folder f;
  f.put("b.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"two\"}\n");
  f.put("a.txt", "plain \xff text");
  f.put("c.html", "<html><head><title>no</title></head><body><p>Hello <b>there</b></p><script>no()</script><pre>a\n  b</pre>");
  f.put("d.bin", std::string("\0\1", 2));
  auto documents = all(f.path);
  ASSERT_EQ(documents.size(), 4u);
  EXPECT_EQ(documents[0].text, "plain \xef\xbf\xbd text");
  EXPECT_EQ(documents[1].text, "one");
  EXPECT_EQ(documents[2].name, (f.path / "b.jsonl").string() + ":3");
  EXPECT_EQ(documents[3].text, "Hello there\na\n  b\n");
}

TEST(Documents, ErrorsNameTheFileAndLine) {
  Folder f;
  f.put("bad.jsonl", "{\"text\": \"ok\"}\n{\"txt\": 1}\n");
  try {
    all(f.path);
    FAIL();
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("bad.jsonl:2"), std::string::npos) << error.what();
  }
  EXPECT_THROW(all(f.path / "missing"), InputError);
}

struct Packed : Folder {
  PackSummary summary;
  Packed() {
    for (int i = 0; i < 30; ++i) put(cat("doc", 10 + i, ".txt"), cat("Document number ", i, " says hello."));
    summary = pack({.inputs = {path},
                    .tokenizer = FULGUR_GOLDEN "/tokenizer/tokenizer.json",
                    .out = path / "shards",
                    .holdout_every = 10,
                    .shard_tokens = 100},
                   [](int64_t, int64_t) {});
  }
};

TEST(Shards, HoldWhatWasPackedSplitByDocument) {
  Packed p;
  EXPECT_EQ(p.summary.train.documents, 27);
  EXPECT_EQ(p.summary.valid.documents, 3);
  TokenShards train(p.path / "shards", "train"), valid(p.path / "shards", "valid");
  EXPECT_EQ(train.documents(), 27);
  EXPECT_EQ(train.tokens(), p.summary.train.tokens);
  EXPECT_EQ(train.text_bytes(), p.summary.train.bytes);
  Tokenizer tokenizer(p.path / "shards" / "tokenizer.json");
  std::vector<int32_t> tokens(valid.length(1));
  valid.read(1, 0, valid.length(1), tokens.data());
  EXPECT_EQ(tokenizer.decode(tokens, true), "Document number 19 says hello.");
  EXPECT_EQ(tokens.front(), 0);
  EXPECT_EQ(tokens.back(), 1);
  std::vector<int32_t> last(train.length(26));
  train.read(26, 0, train.length(26), last.data());
  EXPECT_EQ(tokenizer.decode(last, true), "Document number 28 says hello.");
}

TEST(Shards, ADamagedOrCutShardIsRefused) {
  Packed p;
  auto path = p.path / "shards" / "valid-00000.bin";
  auto good = read_file(path);
  for (size_t i = 0; i < good.size(); i += 7) {
    auto bad = good;
    bad[i] ^= 0x10;
    if (i >= 16 && i < 24) continue;  // the vocabulary's size is for information
    if (i >= 40 && i < 52) continue;  // so are text bytes and the tokenizer's checksum
    if (i >= 56 && i < 72) continue;  // reserved
    write_file_atomic(path, bad);
    EXPECT_THROW(TokenShards(p.path / "shards", "valid"), InputError) << i;
  }
  for (size_t size = 0; size < good.size(); size += 5) {
    write_file_atomic(path, good.substr(0, size));
    EXPECT_THROW(TokenShards(p.path / "shards", "valid"), InputError) << size;
  }
  EXPECT_THROW(TokenShards(p.path / "nothing", "train"), InputError);
}

}  // namespace
}  // namespace fulgur
