// The one forward pass: trainer, sampler, evaluator and dumps call it. Shapes as in weights.h; N is a row: a token of
// some sequence. Rows of one call may belong to many sequences; a row's result depends on its own sequence alone, and
// is the same bits in any batch, chunk or number of threads. Not thread-safe for one Cache; otherwise thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "fulgur/model/config.h"
#include "fulgur/model/weights.h"
#include "fulgur/ops/formats.h"
#include "fulgur/ops/rope/rope.h"

namespace fulgur {

class ExpertPager;

enum class Attention { dense, sparse };  // MHA over all keys, or absorbed MLA over the indexer's top-k

// The rows of one call. Without a cache a key's row is the token's own row; with one, keys are numbered through the pages of
// the call's sequences, one sequence after another.
struct Batch {
  at::Tensor tokens_N;      // int32
  at::Tensor positions_N;   // int32, from 0 in each document
  at::Tensor visible_N2;    // int32, keys [begin, end) a row may see
  at::Tensor slots_N = {};  // int64 rows of the cache that take the new keys; undefined without a cache
  at::Tensor pages_P = {};  // int32 pages of the cache in which the call's keys lie (ops/pages.h)
  at::Tensor next_N = {};   // int32 token behind each row, for forward_mtp; undefined: the following row's
};

// Whole documents packed one after another; lengths add up to the tokens.
Batch pack_documents(const at::Tensor& tokens_N, const std::vector<int64_t>& lengths);

// What a cache holds beside the keys of all layers.
struct CacheExtras {
  // A layer more, for forward_mtp's keys. A key there depends on the token behind its own too, so a shared page may hold one of
  // another continuation, or none yet: they start as zeros, and what is made of them may only ever be a draft.
  bool mtp = false;
  bool choices = false;     // what forward chose for each token lies beside its keys
  CacheFormat format = {};  // of the keys of sparse attention
};

// Keys of earlier tokens, for inference, in pages of 64 tokens; who holds which page is the caller's business.
//   sparse: latent + rope keys [S, R + P] and indexer keys [pages, Di, 64], or quantised (ops/cached_keys.h).
//   sparse, grouped-query attention: values and keys [S, G, 2 E], and indexer keys where they are not these.
//   dense: expanded keys [S, H, E] and values [S, H, Dv].
struct Cache {
  Cache(const ModelConfig& config, Attention attention, at::ScalarType type, int64_t pages, CacheExtras extras = {});

  struct Layer {
    at::Tensor kv_SC, index_PDK;  // sparse; tied indexers have no keys of their own
    at::Tensor k_SHE, v_SHV;      // dense
    at::Tensor experts_Sk;        // choices, int32: of a mixture's experts,
    at::Tensor selected_SK;       // and of keys (sparse), numbered from the text's first token, -1 padding

    at::Tensor index_keys(const ModelConfig& config) const;  // what an indexer scores (ops/indexer/indexer.h)
  };
  std::vector<Layer> layers;

  int64_t bytes() const;

  // The first `count` keys of one page into another, and the choices beside them.
  void copy_keys(int64_t from_page, int64_t to_page, int64_t count);
};
int64_t pages_for(int64_t tokens);

// A sequence's place in a cache: its first `length` tokens lie in these pages, in order.
struct CachedSequence {
  std::vector<int32_t> pages;
  int64_t length = 0;
};
// Sequences with room for `capacity` tokens each, their pages one after another.
std::vector<CachedSequence> cached_sequences(int64_t count, int64_t capacity);

// Rows that append tokens[i] to *sequences[i], which become as much longer. Throws InputError when their pages are full.
Batch append(const std::vector<CachedSequence*>& sequences, const std::vector<std::vector<int32_t>>& tokens);

// Recorded choices a forward pass can be made to repeat (keep routing); undefined tensors are not forced.
struct Replay {
  std::vector<at::Tensor> selected_NK, experts_Nk;  // one a layer, MTP's last
};

// What a forward pass writes down, one entry a layer (MTP's last). Filled only where asked for.
struct LayerTrace {
  at::Tensor hidden_ND, attn_out_ND;               // residual stream behind the layer; attention's output
  at::Tensor indexer_scores_NS;                    // -inf outside the visible keys
  at::Tensor index_q_NJD, index_k_ND, index_w_NJ;  // what dense attention's are made of
  at::Tensor attention_NS;                         // dense attention averaged over heads
  at::Tensor selected_NK;                          // absolute rows, ascending, -1 padding
  at::Tensor experts_Nk, expert_weights_Nk;
};
using Trace = std::vector<LayerTrace>;

// What a layer's dense attention was made of, while it lasts: an indexer is taught and measured beside it.
struct DenseAttention {
  at::Tensor x_ND, latent_NL;  // the layer's normed input, and what index queries are made of (of llama the same)
  at::Tensor q_NHE, k_SHE, lse_NH;
  at::Tensor tied_SD;  // keys of tied indexers: of groups k_SHE, else [c | k_rope]
};

struct ForwardOptions {
  Attention attention = Attention::sparse;
  at::ScalarType type = at::kFloat;  // of activations: f32 or bf16
  bool indexer_kl = false;           // KL(p || softmax(I)) of every layer's indexer
  bool hadamard = false;             // rotate indexer queries and keys (spec C, step 5)
  bool simulate_fp8 = false;         // quantise and dequantise indexer vectors and the latent (spec B.4, C.6)
  at::Tensor balance_starts = {};    // sequence starts for the balance loss; undefined: none
  const Replay* replay = nullptr;
  Trace* trace = nullptr;
  bool best_keys = false;  // sparse attention to the keys of most attention itself, not the indexer's; of one document
  // Called with each layer's dense attention, without a cache.
  const std::function<void(int64_t layer, const DenseAttention&)>* watch = nullptr;
  bool trace_scores = false;  // the trace holds [N, S] scores (and attention, when dense)
};

struct LayerLosses {
  at::Tensor kl_N;        // per row, where asked for
  at::Tensor balance;     // per sequence
  at::Tensor experts_Nk;  // where the layer is a mixture
};

class Transformer {
 public:
  Transformer(ModelConfig config, Weights weights);

  // Hidden states behind the final norm [N, D]. `losses` takes one entry a layer when given.
  at::Tensor forward(const Batch& batch, const ForwardOptions& options, Cache* cache = nullptr,
                     std::vector<LayerLosses>* losses = nullptr) const;

  // The multi-token-prediction layer: row t sees the embedding of token t+1 (zeroed at position 0) and hidden state t;
  // its normed output predicts token t+2. Without batch.next_N the last row of a document has no token t+1 and no meaning.
  at::Tensor forward_mtp(const Batch& batch, const at::Tensor& hidden_ND, const ForwardOptions& options, Cache* cache = nullptr,
                         std::vector<LayerLosses>* losses = nullptr) const;

  // Of some rows (int64) of what a layer's dense attention was made of (MTP's is the last layer): the KL of its indexer, [rows],
  // differentiable in the indexer's weights; the k keys it chooses; and the attention that both are held against, averaged over
  // heads, [rows, S].
  at::Tensor indexer_kl(int64_t layer, const DenseAttention& seen, const Batch& batch, const at::Tensor& rows) const;
  at::Tensor indexer_choice(int64_t layer, const DenseAttention& seen, const Batch& batch, const at::Tensor& rows,
                            int64_t k) const;
  at::Tensor mean_attention(const DenseAttention& seen, const Batch& batch, const at::Tensor& rows) const;

  // Weights are memory-mapped and do not fit in memory: forward asks for experts ahead (expert_pager.h).
  void page_experts();
  const ExpertPager* pager() const { return pager_.get(); }

  const ModelConfig& config() const { return config_; }
  Weights& weights() { return weights_; }
  const Weights& weights() const { return weights_; }

 private:
  struct Pass;           // what all layers of one call share
  struct IndexerInputs;  // queries, keys and weights of the rows at hand
  at::Tensor attention(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, Pass& pass) const;
  at::Tensor best_choice(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, const Pass& pass) const;
  at::Tensor sparse_attention(const AttentionWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL, int64_t index,
                              Pass& pass) const;
  at::Tensor dense_attention(const AttentionWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL, int64_t index,
                             Pass& pass) const;
  at::Tensor grouped_attention(const AttentionWeights& w, const at::Tensor& x_ND, int64_t index, Pass& pass) const;
  IndexerInputs indexer_inputs(const IndexerWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL, const Pass& pass,
                               const at::Tensor& tied_ND = {}) const;
  IndexerInputs indexer_beside(int64_t layer, const DenseAttention& seen, const Batch& batch, const at::Tensor& rows) const;
  at::Tensor select_keys(const IndexerInputs& indexer, const at::Tensor& index_SD, int64_t index, Pass& pass) const;
  at::Tensor attend_chosen(const AttentionWeights& w, const IndexerInputs& indexer, const at::Tensor& q_NHC,
                           const at::Tensor& kv_SC, int64_t values, int64_t index, Pass& pass) const;
  static bool wants_comparison(const AttentionWeights& w, const Pass& pass);
  void compare_to_dense(const IndexerInputs& indexer, const at::Tensor& q_NHE, const at::Tensor& k_SHE, const at::Tensor& lse_NH,
                        Pass& pass) const;
  void expect_experts(int64_t index, const at::Tensor& stream_ND) const;
  at::Tensor feed_forward(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, Pass& pass) const;
  // One decoder layer on (x, residual); returns the new pair.
  std::pair<at::Tensor, at::Tensor> decoder_layer(const LayerWeights& layer, const at::Tensor& x_ND,
                                                  const at::Tensor& residual_ND, int64_t index, Pass& pass) const;

  ModelConfig config_;
  Weights weights_;
  std::vector<float> frequencies_;  // YaRN table, one for each rope pair
  double softmax_scale_;
  std::shared_ptr<ExpertPager> pager_;
};

}  // namespace fulgur
