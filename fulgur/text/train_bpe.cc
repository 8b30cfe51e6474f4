#include "fulgur/text/train_bpe.h"

#include <algorithm>
#include <array>
#include <queue>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/text/bytes.h"

namespace fulgur {
namespace {

uint64_t pair_key(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

struct Word {
  std::vector<int32_t> symbols;
  int64_t count;
};

struct Candidate {
  int64_t count;
  uint64_t pair;
  // Larger count first; of equals the smaller pair of ids.
  bool operator<(const Candidate& o) const { return count != o.count ? count < o.count : pair > o.pair; }
};

class Trainer {
 public:
  Trainer(const WordCounts& words, const BpeOptions& options) : options_(options) {
    for (const auto* tokens : {&options.special_tokens, &options.added_tokens})
      model_.vocab.insert(model_.vocab.end(), tokens->begin(), tokens->end());
    std::vector<std::string> characters(byte_characters().begin(), byte_characters().end());
    std::array<int32_t, 256> id{};
    std::vector<int> order(256);
    for (int b = 0; b < 256; ++b) order[b] = b;
    std::sort(order.begin(), order.end(), [&](int a, int b) { return characters[a] < characters[b]; });
    for (int b : order) {
      id[b] = int32_t(model_.vocab.size());
      model_.vocab.push_back(characters[b]);
    }
    FULGUR_CHECK(options.vocab_size >= int64_t(model_.vocab.size()), "[tokenizer] expected a vocabulary of at least ",
                 model_.vocab.size(), " (bytes and special tokens), got ", options.vocab_size);
    for (size_t i = 0; i < model_.vocab.size(); ++i) id_[model_.vocab[i]] = int32_t(i);
    // Sorted, so that nothing depends on the order of a hash table.
    std::vector<std::pair<std::string, int64_t>> sorted(words.begin(), words.end());
    std::sort(sorted.begin(), sorted.end());
    for (const auto& [text, count] : sorted) {
      Word word{{}, count};
      for (unsigned char byte : text) word.symbols.push_back(id[byte]);
      words_.push_back(std::move(word));
    }
  }

  BpeModel run() {
    for (size_t w = 0; w < words_.size(); ++w)
      for (size_t i = 0; i + 1 < words_[w].symbols.size(); ++i)
        change(pair_key(words_[w].symbols[i], words_[w].symbols[i + 1]), words_[w].count, int32_t(w));
    for (const auto& [pair, count] : counts_) queue_.push({count, pair});
    while (int64_t(model_.vocab.size()) < options_.vocab_size && merge_next()) {
    }
    return std::move(model_);
  }

 private:
  void change(uint64_t pair, int64_t by, int32_t word) {
    counts_[pair] += by;
    if (by > 0) where_[pair].insert(word);
  }

  bool merge_next() {
    while (!queue_.empty()) {
      Candidate best = queue_.top();
      queue_.pop();
      int64_t now = counts_[best.pair];
      if (now != best.count) {  // stale: back with its true count
        if (now > 0) queue_.push({now, best.pair});
        continue;
      }
      if (now < 1 || now < options_.min_frequency) return false;
      merge(best.pair);
      return true;
    }
    return false;
  }

  void merge(uint64_t pair) {
    int32_t left = int32_t(pair >> 32), right = int32_t(pair);
    // Two different pairs can spell one token; the token keeps its first id.
    auto joined = model_.vocab[left] + model_.vocab[right];
    auto [found, is_new] = id_.try_emplace(joined, int32_t(model_.vocab.size()));
    int32_t merged = found->second;
    model_.merges.emplace_back(model_.vocab[left], model_.vocab[right]);
    if (is_new) model_.vocab.push_back(joined);
    auto words = std::move(where_[pair]);
    where_.erase(pair);
    std::set<uint64_t> grown;
    for (int32_t w : words) merge_word(w, left, right, merged, grown);
    for (uint64_t other : grown) queue_.push({counts_[other], other});
  }

  void merge_word(int32_t w, int32_t left, int32_t right, int32_t merged, std::set<uint64_t>& grown) {
    auto& symbols = words_[w].symbols;
    int64_t count = words_[w].count;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      if (symbols[i] != left || symbols[i + 1] != right) continue;
      auto neighbour = [&](int32_t a, int32_t b, int32_t new_a, int32_t new_b) {
        change(pair_key(a, b), -count, w);
        change(pair_key(new_a, new_b), count, w);
        grown.insert(pair_key(new_a, new_b));
      };
      if (i > 0) neighbour(symbols[i - 1], left, symbols[i - 1], merged);
      if (i + 2 < symbols.size()) neighbour(right, symbols[i + 2], merged, symbols[i + 2]);
      change(pair_key(left, right), -count, w);
      symbols[i] = merged;
      symbols.erase(symbols.begin() + i + 1);
    }
  }

  BpeOptions options_;
  BpeModel model_;
  std::unordered_map<std::string, int32_t> id_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, int64_t> counts_;
  std::unordered_map<uint64_t, std::set<int32_t>> where_;  // words a pair may stand in
  std::priority_queue<Candidate> queue_;
};

}  // namespace

BpeModel train_bpe(const WordCounts& words, const BpeOptions& options) { return Trainer(words, options).run(); }

const std::vector<std::string>& deepseek_patterns() {
  static const std::vector<std::string> patterns = {
      "\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "
      "?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"};
  return patterns;
}

Vocabulary vocabulary_of(const BpeModel& model, const BpeOptions& options, const std::vector<std::string>& patterns) {
  Vocabulary out;
  std::unordered_map<std::string, int32_t> ids;
  bool byte_level;
  for (size_t i = 0; i < model.vocab.size(); ++i) {
    bool special = i < options.special_tokens.size(), added = i < options.special_tokens.size() + options.added_tokens.size();
    ids[model.vocab[i]] = int32_t(i);
    out.tokens.push_back(added ? model.vocab[i] : token_bytes(model.vocab[i], byte_level));
    if (added) out.added.push_back({model.vocab[i], int32_t(i), special, /*normalized=*/false});
  }
  out.known.assign(out.tokens.size(), true);
  for (const auto& character : byte_characters()) out.byte_ids.push_back(ids.at(character));
  for (const auto& [left, right] : model.merges) out.merges.push_back({ids.at(left), ids.at(right), ids.at(left + right)});
  out.patterns = patterns;
  return out;
}

}  // namespace fulgur
