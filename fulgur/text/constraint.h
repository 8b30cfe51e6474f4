// Which tokens may come next, for a text that must be of a grammar's language.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "fulgur/text/grammar.h"
#include "fulgur/text/tokenizer.h"

namespace fulgur {

// A tokenizer's tokens, sorted as a tree of their bytes. Made once for all constraints.
class TokenTree {
 public:
  explicit TokenTree(const Tokenizer& tokenizer);

  struct Node {
    uint8_t byte;    // that leads here
    int32_t token;   // the first of this text in `same`, or -1
    int32_t behind;  // the first node that is not below this one
  };
  std::vector<Node> nodes;                  // a node, then what is below it; the first has no byte
  std::vector<std::vector<int32_t>> same;   // tokens of one text
  std::map<std::string, int32_t> specials;  // by their text; in no node
  std::vector<std::string> texts;           // by id; empty for special tokens
};

// A set of tokens: bit id % 64 of word id / 64.
using TokenMask = std::vector<uint64_t>;

// A grammar over a vocabulary. Its states are numbers, which stay valid as long as it does; what it finds out about one is kept.
// Thread-safe.
class Constraint {
 public:
  // Throws InputError when the grammar has a special token that the tokenizer does not know.
  Constraint(Grammar grammar, std::shared_ptr<const TokenTree> tokens);
  ~Constraint();

  int32_t start() const;
  // The state behind a token; -1 where it does not fit.
  int32_t advance(int32_t state, int32_t token) const;
  // Tokens behind which some text of the language can still come about. Never empty unless the text is one already.
  std::shared_ptr<const TokenMask> mask(int32_t state) const;
  // The text so far is of the language,
  bool may_end(int32_t state) const;
  // and nothing behind it would be.
  bool complete(int32_t state) const;
  int64_t vocab_size() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fulgur
