#include "fulgur/train/data/shards.h"

#include <zlib.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/base/threads.h"
#include "fulgur/train/data/documents.h"

namespace fulgur {
namespace fs = std::filesystem;
namespace {

struct Header {
  char magic[8];
  uint32_t version, token_bytes;
  uint64_t vocab, tokens, documents, text_bytes;
  uint32_t tokenizer_crc, crc;
  uint64_t reserved[2];
};
static_assert(sizeof(Header) == 72);
constexpr char kMagic[8] = {'F', 'U', 'L', 'G', 'U', 'R', 'T', 'K'};

uint32_t crc_of(const void* data, size_t size, uint32_t start = 0) {
  return uint32_t(crc32_z(start, static_cast<const Bytef*>(data), size));
}

// A shard's file, every number checked against its size before it is believed.
Header checked_header(const fs::path& path, std::span<const std::byte> bytes) {
  Header h{};
  FULGUR_CHECK(bytes.size() >= sizeof h, "[shard] ", path.string(), ": expected at least ", sizeof h, " bytes, got ",
               bytes.size());
  std::memcpy(&h, bytes.data(), sizeof h);
  FULGUR_CHECK(std::memcmp(h.magic, kMagic, 8) == 0 && h.version == 1, "[shard] ", path.string(),
               ": expected a token shard of version 1, got something else");
  FULGUR_CHECK(h.token_bytes == 2 || h.token_bytes == 4, "[shard] ", path.string(), ": expected 2 or 4 bytes a token, got ",
               h.token_bytes);
  uint64_t body = bytes.size() - sizeof h;
  FULGUR_CHECK(
      h.documents < body / 8 && h.tokens <= body / h.token_bytes && (h.documents + 1) * 8 + h.tokens * h.token_bytes == body,
      "[shard] ", path.string(), ": expected ", h.documents, " documents and ", h.tokens, " tokens to fill the file, got ",
      bytes.size(), " bytes\n  hint: the file is cut off; run `fulgur data pack` again");
  uint32_t crc = crc_of(bytes.data() + sizeof h, body);
  FULGUR_CHECK(crc == h.crc, "[shard] ", path.string(), ": expected checksum ", h.crc, ", got ", crc,
               "\n  hint: the file is damaged; run `fulgur data pack` again");
  return h;
}

}  // namespace

TokenShards::TokenShards(const fs::path& folder, const std::string& split) {
  FULGUR_CHECK(fs::is_directory(folder), "[shard] ", folder.string(), ": expected a folder of token shards, got none",
               "\n  hint: make one with `fulgur data pack`");
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    auto name = entry.path().filename().string();
    if (name.rfind(split + "-", 0) == 0 && entry.path().extension() == ".bin") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  FULGUR_CHECK(!paths.empty(), "[shard] ", folder.string(), ": expected shards ", split, "-*.bin, got none");
  uint32_t tokenizer = 0;
  for (const auto& path : paths) {
    MappedFile file(path);
    Header h = checked_header(path, file.bytes());
    FULGUR_CHECK(shards_.empty() || h.tokenizer_crc == tokenizer, "[shard] ", path.string(),
                 ": expected shards of one tokenizer, got another's");
    tokenizer = h.tokenizer_crc;
    const std::byte* index = file.bytes().data() + sizeof h;
    int64_t base = starts_.back(), previous = 0, first = documents();
    for (uint64_t i = 0; i <= h.documents; ++i) {
      uint64_t offset;
      std::memcpy(&offset, index + 8 * i, 8);
      FULGUR_CHECK(offset <= h.tokens && int64_t(offset) >= previous && (i > 0 || offset == 0), "[shard] ", path.string(),
                   ": expected ascending document offsets, got ", offset, " after ", previous);
      if (i > 0) starts_.push_back(base + int64_t(offset));
      previous = int64_t(offset);
    }
    const std::byte* tokens = index + 8 * (h.documents + 1);
    bool fits = h.text_bytes <= uint64_t(INT64_MAX) && !__builtin_add_overflow(text_bytes_, int64_t(h.text_bytes), &text_bytes_);
    FULGUR_CHECK(fits, "[shard] ", path.string(), ": expected a size of text in bytes, got ", h.text_bytes);
    checksum_ = crc_of(&h.crc, 4, checksum_);
    shards_.push_back({std::move(file), tokens, first, int64_t(h.token_bytes)});
  }
}

void TokenShards::read(int64_t document, int64_t first, int64_t count, int32_t* out) const {
  auto shard =
      std::upper_bound(shards_.begin(), shards_.end(), document, [](int64_t d, const Shard& s) { return d < s.first_document; }) -
      1;
  const std::byte* at = shard->tokens + (starts_[document] - starts_[shard->first_document] + first) * shard->token_bytes;
  for (int64_t i = 0; i < count; ++i, at += shard->token_bytes) {
    uint32_t token = 0;
    std::memcpy(&token, at, shard->token_bytes);
    out[i] = int32_t(token);
  }
}

namespace {

// Collects the documents of one split and writes a shard whenever one is full.
class ShardWriter {
 public:
  ShardWriter(const PackOptions& options, std::string split, int64_t vocab, uint32_t tokenizer_crc)
      : options_(options),
        split_(std::move(split)),
        vocab_(vocab),
        tokenizer_crc_(tokenizer_crc) {}

  void add(const std::vector<int32_t>& tokens, int64_t bytes) {
    for (int32_t token : tokens) tokens_.push_back(uint32_t(token));
    offsets_.push_back(tokens_.size());
    text_bytes_ += bytes;
    summary.documents++, summary.tokens += int64_t(tokens.size()), summary.bytes += bytes;
    if (int64_t(tokens_.size()) >= options_.shard_tokens) flush();
  }

  void flush() {
    if (offsets_.size() == 1) return;
    Header h{};
    std::memcpy(h.magic, kMagic, 8);
    h.version = 1, h.token_bytes = vocab_ <= 65536 ? 2 : 4, h.vocab = uint64_t(vocab_), h.tokens = tokens_.size();
    h.documents = offsets_.size() - 1, h.text_bytes = uint64_t(text_bytes_), h.tokenizer_crc = tokenizer_crc_;
    std::string body(offsets_.size() * 8 + tokens_.size() * h.token_bytes, '\0');
    std::memcpy(body.data(), offsets_.data(), offsets_.size() * 8);
    char* at = body.data() + offsets_.size() * 8;
    for (uint32_t token : tokens_) std::memcpy(at, &token, h.token_bytes), at += h.token_bytes;
    h.crc = crc_of(body.data(), body.size());
    char name[64];
    std::snprintf(name, sizeof name, "%s-%05d.bin", split_.c_str(), shard_++);
    write_file_atomic(options_.out / name, [&](const WriteBytes& write) {
      write(&h, sizeof h);
      write(body.data(), body.size());
    });
    tokens_.clear(), offsets_.assign(1, 0), text_bytes_ = 0;
  }

  PackSummary::Split summary;

 private:
  const PackOptions& options_;
  std::string split_;
  int64_t vocab_;
  uint32_t tokenizer_crc_;
  std::vector<uint32_t> tokens_;
  std::vector<uint64_t> offsets_{0};
  int64_t text_bytes_ = 0;
  int shard_ = 0;
};

}  // namespace

PackSummary pack(const PackOptions& options, const std::function<void(int64_t, int64_t)>& progress) {
  std::string tokenizer_bytes = read_file(options.tokenizer);
  Tokenizer tokenizer(options.tokenizer);
  auto [bos, eos] =
      options.ends.value_or(PackOptions::Ends{tokenizer.id("<｜begin▁of▁sentence｜>"), tokenizer.id("<｜end▁of▁sentence｜>")});
  FULGUR_CHECK(options.ends || (bos >= 0 && eos >= 0), "[data] ", options.tokenizer.string(),
               ": expected the special tokens <｜begin▁of▁sentence｜> and <｜end▁of▁sentence｜>, got none");
  std::vector<Document> documents;
  int64_t total = 0, done = 0;
  for (const auto& input : options.inputs)
    for_each_document(input, [&](Document document) {
      if (document.text.find_first_not_of(" \t\r\n") == std::string::npos) return;
      total += int64_t(document.text.size());
      documents.push_back(std::move(document));
    });
  FULGUR_CHECK(!documents.empty(), "[data] expected documents with text, got none");

  fs::create_directories(options.out);
  for (const auto& entry : fs::directory_iterator(options.out))  // a former packing must not mix with this one
    if (entry.path().extension() == ".bin") fs::remove(entry.path());
  uint32_t crc = crc_of(tokenizer_bytes.data(), tokenizer_bytes.size());
  ShardWriter train(options, "train", tokenizer.vocab_size(), crc), valid(options, "valid", tokenizer.vocab_size(), crc);
  RandomStream random(options.seed, "data.holdout");
  constexpr int64_t kGroup = 64;  // documents tokenised side by side; written in order
  for (size_t first = 0; first < documents.size(); first += kGroup) {
    int64_t count = std::min<int64_t>(kGroup, int64_t(documents.size() - first));
    std::vector<std::vector<int32_t>> tokens(count);
    parallel_for(count, [&](int64_t i) { tokens[i] = tokenizer.encode(documents[first + i].text); });
    for (int64_t i = 0; i < count; ++i) {
      if (bos >= 0) tokens[i].insert(tokens[i].begin(), bos);
      if (eos >= 0) tokens[i].push_back(eos);
      int64_t bytes = int64_t(documents[first + i].text.size()), index = int64_t(first) + i;
      bool held_out = options.holdout_every > 0 ? (index + 1) % options.holdout_every == 0 : random.below(50) == 0;
      (held_out ? valid : train).add(tokens[i], bytes);
      done += bytes;
    }
    progress(done, total);
  }
  train.flush(), valid.flush();
  FULGUR_CHECK(train.summary.documents > 0 && valid.summary.documents > 0,
               "[data] expected documents for training and validation, got ", train.summary.documents, " and ",
               valid.summary.documents, "\n  hint: give more documents, or hold out with --holdout-every");
  write_file_atomic(options.out / "tokenizer.json", tokenizer_bytes);
  return {train.summary, valid.summary};
}

}  // namespace fulgur
