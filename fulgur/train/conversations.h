// Conversations to learn from (supervised fine-tuning): JSON Lines of {"messages": [...], "mode": "chat" | "thinking"} in
// DeepSeek-V3.2's format. Each user turn is a sample: the prompt up to it, and what follows up to the next one; the loss is on
// what the assistant writes there (reasoning, content, calls, the end of its turn), not on what tools say. Spec G.2, G.3.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "fulgur/text/message.h"
#include "fulgur/text/tokenizer.h"
#include "fulgur/text/v32_encode.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/stage.h"

namespace fulgur {

struct Sample {
  std::vector<int32_t> tokens;
  std::vector<bool> learned;  // of each token: the assistant wrote it
  int64_t prompt = 0;         // tokens before the first answer
};

// Without a "mode" a conversation is thinking where an answer behind the last user has reasoning. Throws InputError that names
// the message.
std::vector<Sample> samples_of(const std::vector<Message>& messages, ThinkingMode mode, const Tokenizer& tokenizer);
// All of a file; throws InputError that names file, line and field, and where a sample is longer than `longest` tokens.
std::vector<Sample> read_conversations(const std::filesystem::path& path, const Tokenizer& tokenizer, int64_t longest);

// Samples packed into sequences of at most `context` tokens, none of them cut, each seeing itself alone, in an order of each
// epoch's own or (`shuffle` = false) as they come; `text_share` of the steps are `text`'s instead: whole steps, since a sequence
// of text has many times the targets of one of answers and would drown it. A function of its inputs and the sequence number
// alone.
class Conversations : public Mixture {
 public:
  Conversations(std::vector<Sample> samples, BatchSource& text, const StageConfig& config);
  TrainBatch get(int64_t first, int64_t count) override;
  bool is_text(int64_t step) const override;
  std::string other() const override { return "conversations"; }
  int64_t sequences_per_epoch() const override;  // of the first epoch: shuffled otherwise, samples may fill more or fewer

 private:
  const std::vector<std::vector<size_t>>& packed(int64_t epoch);
  const std::vector<size_t>& sequence(int64_t number);
  int64_t text_steps_before(int64_t step) const;
  int64_t text_before(int64_t number) const;

  std::vector<Sample> samples_;
  BatchSource& text_;
  double text_share_;
  int64_t context_, step_sequences_;
  uint64_t seed_;
  bool shuffle_;
  std::vector<int64_t> first_{0};              // sequence of each epoch known so far, and of the next
  std::vector<std::vector<size_t>> of_epoch_;  // of the epoch read last
  int64_t epoch_ = -1;
};

}  // namespace fulgur
