// Trains byte-level BPE: the merges Hugging Face's BpeTrainer finds.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "fulgur/text/vocabulary.h"

namespace fulgur {

// How often each piece of the text occurs. Pieces come from a Splitter.
using WordCounts = std::unordered_map<std::string, int64_t>;

struct BpeOptions {
  int64_t vocab_size = 4096;                   // special tokens and the 256 bytes included
  int64_t min_frequency = 2;                   // a pair seen less often is never merged
  std::vector<std::string> special_tokens;     // take the first ids,
  std::vector<std::string> added_tokens = {};  // and these the next: text, each of which is one token where a format writes it
};

struct BpeModel {
  std::vector<std::string> vocab;  // by id, in the byte-level alphabet
  std::vector<std::pair<std::string, std::string>> merges;
};

// Merges the most frequent pair, of equals the one with the smaller ids, until the vocabulary is full.
// Ids: special and added tokens, then bytes by code point of their character, then merges. Throws InputError when the
// vocabulary has no room for bytes and these.
BpeModel train_bpe(const WordCounts& words, const BpeOptions& options);

// The pattern set DeepSeek's own tokenizer uses: digits by three, CJK runs, then words and punctuation.
const std::vector<std::string>& deepseek_patterns();

// With these patterns, for Tokenizer, and for tokenizer_json.
Vocabulary vocabulary_of(const BpeModel& model, const BpeOptions& options, const std::vector<std::string>& patterns);

}  // namespace fulgur
