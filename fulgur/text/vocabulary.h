// What a byte-level BPE tokenizer is made of, read from a file that is one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "fulgur/base/json.h"

namespace fulgur {

struct AddedToken {
  std::string text;
  int32_t id;
  bool special, normalized;
};

struct Vocabulary {
  struct Merge {
    int32_t left, right, joined;
  };

  std::string name;                 // in errors
  std::vector<std::string> tokens;  // by id: the bytes each stands for; an added token's text
  std::vector<bool> known;          // by id: false where an id is no token
  std::vector<int32_t> byte_ids;    // [256]: each byte's token; -1: none, as of bytes no training text had
  int32_t unknown = -1;             // stands for such a byte; -1: it is left out
  std::vector<Merge> merges;        // the first is done first
  std::vector<AddedToken> added;
  std::vector<std::string> patterns;  // Splitter's
  bool whole_words = false;           // a piece that is a token is that token, whatever the merges ("ignore_merges")
  bool nfc = false;                   // text is brought into Unicode's form NFC first
};

// Hugging Face's tokenizer.json: BPE; no normalizer or NFC; pre-tokenizers Split, Digits and ByteLevel, as of the DeepSeek,
// Llama-3, Qwen and GPT-2 families. Throws InputError that names the file and what it has instead.
Vocabulary read_tokenizer_json(const std::filesystem::path& path);

// The other way, readable by Hugging Face's tokenizers too.
Json tokenizer_json(const Vocabulary& vocabulary);

// A vocabulary as GGUF keeps it: tokens and merges in byte-level characters, and which pre-tokenizer, by llama.cpp's name. `type`
// is 3 of a control token, 4 of a user's own.
Vocabulary gguf_vocabulary(const std::vector<std::string>& tokens, const std::vector<int32_t>& type,
                           const std::vector<std::string>& merges, const std::string& pre, const std::string& name);

}  // namespace fulgur
