// Byte-level BPE in the file format of Hugging Face tokenizers (tokenizer.json). PCRE2 runs the pattern the file gives.
// Thread-safe once loaded: encode and decode may be called from many threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "fulgur/text/prompt.h"
#include "fulgur/text/vocabulary.h"

namespace fulgur {

class Tokenizer {
 public:
  // Throws InputError that names the file, what was expected and what was found.
  explicit Tokenizer(const std::filesystem::path& tokenizer_json);
  explicit Tokenizer(Vocabulary vocabulary);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) = delete;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // With parse_special the added tokens' texts become their ids (leftmost, longest); else they are text. Invalid UTF-8
  // is read as U+FFFD, one for each maximal invalid part.
  std::vector<int32_t> encode(std::string_view text, bool parse_special = false) const;
  // Added tokens become their ids where the format wrote them, and nowhere else.
  std::vector<int32_t> encode(const Prompt& prompt) const;
  // The text's pieces, as the pattern splits them. For tests.
  std::vector<std::string> split(std::string_view text) const;
  // Bytes, which may end inside a character. Throws InputError on an id outside the vocabulary.
  std::string decode(const std::vector<int32_t>& ids, bool skip_special = false) const;
  // A token of a model whose vocabulary was padded beyond this one: those are no text.
  std::string decode_drawn(int32_t id, bool skip_special = false) const {
    return id < vocab_size() ? decode({id}, skip_special) : std::string();
  }

  int32_t vocab_size() const;                // largest id + 1
  int32_t id(std::string_view token) const;  // of an added token's text; -1 when there is none
  bool is_special(int32_t id) const;
  int32_t byte_length(int32_t id) const;  // bytes the token stands for; 0 for special tokens

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fulgur
