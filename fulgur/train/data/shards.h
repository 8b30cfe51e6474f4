// Token shards: what training reads. Memory-mapped, little endian, checked by a CRC of everything behind the header.
//   header (72 bytes): "FULGURTK", version, bytes a token (2 or 4), vocabulary, tokens, documents, bytes of text,
//                      CRC of tokenizer.json, CRC of index and tokens
//   index: documents + 1 offsets (u64) in tokens;  tokens: u16 or u32
// A document is its tokens, begun by BOS and ended by EOS, where the model has them. Readers are thread-safe.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fulgur/base/file.h"
#include "fulgur/text/tokenizer.h"

namespace fulgur {

class TokenShards {
 public:
  // All shards "<split>-*.bin" of a folder. Throws InputError on a missing folder, a lying header, a wrong checksum or
  // shards of different tokenizers.
  TokenShards(const std::filesystem::path& folder, const std::string& split);

  int64_t documents() const { return int64_t(starts_.size()) - 1; }
  int64_t length(int64_t document) const { return starts_[document + 1] - starts_[document]; }
  int64_t tokens() const { return starts_.back(); }
  int64_t text_bytes() const { return text_bytes_; }
  uint32_t checksum() const { return checksum_; }  // of all shards; a run records it
  void read(int64_t document, int64_t first, int64_t count, int32_t* out) const;

 private:
  struct Shard {
    MappedFile file;
    const std::byte* tokens;
    int64_t first_document, token_bytes;
  };
  std::vector<Shard> shards_;
  std::vector<int64_t> starts_{0};  // of all documents, over all shards
  int64_t text_bytes_ = 0;
  uint32_t checksum_ = 0;
};

struct PackOptions {
  std::vector<std::filesystem::path> inputs = {};
  std::filesystem::path tokenizer;  // tokenizer.json
  std::filesystem::path out;        // folder
  int64_t holdout_every = 0;        // every n-th document is for validation; 0: one of 50, drawn by the seed
  uint64_t seed = 1;
  int64_t shard_tokens = int64_t(1) << 26;
  struct Ends {
    int32_t bos, eos;  // -1: none
  };
  std::optional<Ends> ends = {};  // what documents begin and end with; absent: <｜begin▁of▁sentence｜> and <｜end▁of▁sentence｜>
};

struct PackSummary {
  struct Split {
    int64_t documents = 0, tokens = 0, bytes = 0;
  } train, valid;
};

// Packs whole documents, in the order of the inputs. `progress(done, total)` in bytes of text.
PackSummary pack(const PackOptions& options, const std::function<void(int64_t, int64_t)>& progress);

}  // namespace fulgur
