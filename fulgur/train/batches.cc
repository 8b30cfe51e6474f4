#include "fulgur/train/batches.h"

#include <ATen/ops/tensor.h>

#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"

namespace fulgur {
Batches::Batches(const TokenShards& shards, int64_t context, uint64_t seed) : shards_(shards), context_(context), seed_(seed) {
  shuffle(0);
  FULGUR_CHECK(!order_.empty(), "[data] expected at least one sequence of ", context, " tokens, got ", shards.tokens(),
               " tokens in all\n  hint: give more text, or a shorter context");
}

// Every epoch has the same number of sequences: its pieces are the same, only their order changes.
void Batches::shuffle(int64_t epoch) {
  if (epoch == epoch_) return;
  RandomStream random(seed_, cat("batches.epoch.", epoch));
  std::vector<Piece> rest;
  order_.clear();
  for (int64_t d = 0; d < shards_.documents(); ++d)
    for (int64_t first = 0; first + 1 < shards_.length(d); first += context_) {
      int64_t count = std::min(context_, shards_.length(d) - first);
      if (count == context_) order_.push_back({{d, first, count}});
      else rest.push_back({d, first, count});
    }
  fulgur::shuffle(rest, random);
  Sequence open;
  int64_t room = context_;
  for (Piece piece : rest)
    while (piece.count > 0) {
      int64_t taken = std::min(room, piece.count);
      open.push_back({piece.document, piece.first, taken});
      piece.first += taken, piece.count -= taken, room -= taken;
      if (room == 0) order_.push_back(std::move(open)), open.clear(), room = context_;
    }
  // What does not fill a sequence is left out of this epoch.
  fulgur::shuffle(order_, random);
  epoch_ = epoch;
}

TrainBatch Batches::get(int64_t first, int64_t count) {
  std::vector<int32_t> tokens, next, next2, starts{0};
  std::vector<int64_t> lengths;
  for (int64_t i = first; i < first + count; ++i) {
    shuffle(i / sequences_per_epoch());
    for (const Piece& piece : order_[i % sequences_per_epoch()]) {
      int64_t available = std::min(piece.count + 2, shards_.length(piece.document) - piece.first);
      std::vector<int32_t> text(piece.count + 2, -1);
      shards_.read(piece.document, piece.first, available, text.data());
      tokens.insert(tokens.end(), text.begin(), text.begin() + piece.count);
      next.insert(next.end(), text.begin() + 1, text.begin() + 1 + piece.count);
      // MTP sees the next token as an input, which the piece's last row does not have.
      next2.insert(next2.end(), text.begin() + 2, text.begin() + 1 + piece.count);
      next2.push_back(-1);
      lengths.push_back(piece.count);
    }
    starts.push_back(int32_t(tokens.size()));
  }
  return {pack_documents(at::tensor(tokens, at::kInt), lengths), at::tensor(next, at::kInt), at::tensor(next2, at::kInt),
          at::tensor(starts, at::kInt)};
}

LeadIn::LeadIn(const std::filesystem::path& folder, BatchSource& text, int64_t context, uint64_t seed, int64_t step_sequences)
    : shards_(folder, "train"),
      batches_(shards_, context, seed),
      text_(text),
      step_sequences_(step_sequences),
      steps_(batches_.sequences_per_epoch() / step_sequences) {}

TrainBatch LeadIn::get(int64_t first, int64_t count) {
  return first < length() ? batches_.get(first, count) : text_.get(first - length(), count);
}

}  // namespace fulgur
