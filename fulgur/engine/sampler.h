// One token out of a row of logits. A draw is a function of (logits, settings, what came before, seed, position) alone: its noise
// comes from a counter, so a seed gives the same text in any batch, and with or without speculation. No torch. Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fulgur {

// In the order in which they act: penalties and bias, what a grammar allows, temperature, top-k, top-p, min-p.
struct Sampling {
  double temperature = 1;         // 0: the most likely token, of equal ones the smaller id
  int64_t top_k = 0;              // the k most likely; 0: all
  double top_p = 1;               // the fewest most likely that hold this share of what top-k left
  double min_p = 0;               // at least this share of the most likely one's probability
  double repetition_penalty = 1;  // logits of tokens in the text: divided when positive, else multiplied
  double presence_penalty = 0;    // subtracted once from tokens that were generated,
  double frequency_penalty = 0;   // and for each time they were
  std::vector<std::pair<int32_t, double>> logit_bias = {};  // added to these tokens
  uint64_t seed = 0;

  bool penalises() const { return repetition_penalty != 1 || presence_penalty != 0 || frequency_penalty != 0; }
};

// Throws InputError that names the field, what it may be and what it was.
void validate(const Sampling& sampling, int64_t vocab_size);

// How often tokens stand in the text so far; kept only where something is penalised.
class TokenCounts {
 public:
  void add(int32_t token, bool generated);

 private:
  friend void penalise(const Sampling&, const TokenCounts&, std::vector<float>&);
  std::unordered_map<int32_t, int64_t> count_;  // generated; 0: in the prompt alone
};

// The tokens a draw chose among and which it took. `kept` is empty where all were kept.
struct Draw {
  int32_t token = 0;
  std::vector<int32_t> kept;  // ascending
};
// The `position`th token of the text, counted from 0. `allowed`: bit id % 64 of word id / 64; empty: all tokens are.
Draw draw(std::span<const float> logits, const Sampling& sampling, const TokenCounts& counts, uint64_t position,
          std::span<const uint64_t> allowed = {});

// The `count` largest logits, larger first, then smaller id.
std::vector<int32_t> most_likely(std::span<const float> logits, int64_t count);

}  // namespace fulgur
