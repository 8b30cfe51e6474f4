// Which tokens a training step sees: sequences of `context` tokens, filled with pieces of documents. Attention and
// positions restart at each piece. A function of (shards, context, seed, sequence number) alone.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "fulgur/model/transformer.h"
#include "fulgur/train/data/shards.h"

namespace fulgur {

// One forward pass worth of sequences, flattened.
struct TrainBatch {
  Batch batch;
  at::Tensor next_N, next2_N;  // int32 targets one and two tokens ahead in the document, -1 where there is none
  at::Tensor starts;           // int32 [sequences + 1], for the balance loss
};

// An endless stream of sequences. Not thread-safe.
class BatchSource {
 public:
  virtual ~BatchSource() = default;
  virtual TrainBatch get(int64_t first, int64_t count) = 0;  // sequences [first, first + count)
  virtual int64_t sequences_per_epoch() const = 0;
  virtual int64_t epoch(int64_t sequence) const { return sequence / sequences_per_epoch(); }
};

class Batches : public BatchSource {
 public:
  Batches(const TokenShards& shards, int64_t context, uint64_t seed);

  // Sequences [first, first + count) of the endless stream: epochs follow each other, each in an order of its own.
  // Pieces of a whole context stand alone in a sequence; shorter ones are packed, the last cut where it does not fit.
  TrainBatch get(int64_t first, int64_t count) override;

  int64_t sequences_per_epoch() const override { return int64_t(order_.size()); }

 private:
  struct Piece {
    int64_t document, first, count;
  };
  using Sequence = std::vector<Piece>;
  void shuffle(int64_t epoch);

  const TokenShards& shards_;
  int64_t context_;
  uint64_t seed_;
  int64_t epoch_ = -1;
  std::vector<Sequence> order_;
};

// Text, and steps of something else whose losses are not to be compared with text's.
class Mixture : public BatchSource {
 public:
  virtual bool is_text(int64_t step) const = 0;
  virtual std::string other() const = 0;  // what the other steps are of
};

// The "train" shards of a folder once, as much of them as makes whole steps of `step_sequences`, and behind them `text`.
class LeadIn : public Mixture {
 public:
  LeadIn(const std::filesystem::path& folder, BatchSource& text, int64_t context, uint64_t seed, int64_t step_sequences);
  TrainBatch get(int64_t first, int64_t count) override;  // of one step
  int64_t sequences_per_epoch() const override { return text_.sequences_per_epoch(); }
  int64_t epoch(int64_t sequence) const override { return sequence < length() ? 0 : text_.epoch(sequence - length()); }
  bool is_text(int64_t step) const override { return step >= steps_; }
  std::string other() const override { return "lead-in"; }
  int64_t length() const { return steps_ * step_sequences_; }
  uint32_t checksum() const { return shards_.checksum(); }

 private:
  TokenShards shards_;
  Batches batches_;
  BatchSource& text_;
  int64_t step_sequences_, steps_;
};

}  // namespace fulgur
