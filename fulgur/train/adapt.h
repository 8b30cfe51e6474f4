// Sparse attention for a dense model (as V3.2 came from V3.1, paper 2.1.1): indexers beside the attention there is, taught by it.
//   Dense warm-up, a layer at a time: while sequences pass through the dense model, each layer's indexer takes a few steps
//   towards the head-summed attention of rows drawn from them. Layers' indexers know nothing of each other, so nothing is kept
//   from layer to layer: memory is that of a forward pass and of one indexer's moments, O(rows + tile) a key.
// A function of its inputs and the seed; the same bits on any number of threads, and of processes.
#pragma once

#include <map>
#include <string>

#include "fulgur/model/transformer.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/parallel.h"

namespace fulgur {

struct IndexerTeaching {
  int64_t context = 2048;  // tokens a sequence
  int64_t sequences = 40;  // in all,
  int64_t batch = 1;       // and a step
  int64_t passes = 5;      // gradient steps of each layer's indexer a step,
  int64_t rows = 128;      // each on so many rows of each sequence
  double lr = 3e-3;        // falls linearly to 0
  uint64_t seed = 1;
};

// The same model with indexers, by the keys index_* of `config`; those it has are replaced. Tied ones begin with the attention's
// own queries, of several heads their mean, all of one weight; own ones at random. Throws InputError where index_n_heads does not
// divide the heads.
Transformer with_indexers(Transformer dense, const ModelConfig& config, uint64_t seed);

// Teaches the indexers of `model`, which holds the gradient's marks as long as this lives. All ranks of a group do the same, each
// on its share of a step's sequences.
class IndexerTeacher {
 public:
  // Throws InputError where a step's sequences are not a multiple of the ranks.
  IndexerTeacher(Transformer& model, const IndexerTeaching& teaching, ProcessGroup& group);
  ~IndexerTeacher();
  IndexerTeacher(const IndexerTeacher&) = delete;
  IndexerTeacher& operator=(const IndexerTeacher&) = delete;

  int64_t steps() const { return teaching_.sequences / teaching_.batch; }
  int64_t done() const { return done_; }
  double step(BatchSource& text);  // mean KL of all its passes

  // Indexers and their moments behind so many steps, by name.
  std::map<std::string, at::Tensor> state() const;
  void load_state(const std::map<std::string, at::Tensor>& state, int64_t done);

 private:
  struct Learned {
    std::string name;
    at::Tensor *weight, m, v;
  };
  double teach_layer(int64_t layer, const DenseAttention& seen, const Batch& batch);
  void update(std::vector<Learned>& layer, const std::vector<at::Tensor>& gradients, int64_t number);

  Transformer& model_;
  IndexerTeaching teaching_;
  ProcessGroup& group_;
  std::vector<std::vector<Learned>> layers_;  // MTP's last
  int64_t done_ = 0;
};

}  // namespace fulgur
