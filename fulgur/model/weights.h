// Every parameter of a model, as plain tensors in the order of the forward pass. Master copies, f32.
//   V vocab_size  D hidden_size  H heads  Lq q_lora_rank  R kv_lora_rank  P qk_rope_head_dim  E nope + rope  Dv v_head_dim
//   J index_n_heads  Di index_head_dim  X n_routed_experts  M moe_intermediate_size  F intermediate_size
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fulgur/model/config.h"
#include "fulgur/ops/formats.h"

namespace fulgur {

struct IndexerWeights {
  at::Tensor wq_b;                 // [J * Di, Lq], each head rope first; of llama [J * Di, D]
  at::Tensor wk;                   // [Di, D]; undefined, as the two below, where the keys are the attention's own
  at::Tensor k_norm, k_norm_bias;  // [Di]
  at::Tensor weights_proj;         // [J, D]
  bool tied = false;
  at::Tensor weights_bias;  // [J], of tied keys alone: all heads begin alike, whatever the token
};

// Of grouped-query attention, as Llama has it.
struct GroupedWeights {
  at::Tensor q_proj;          // [H * E, D]
  at::Tensor k_proj, v_proj;  // [key heads * E, D]
};

struct AttentionWeights {
  std::optional<GroupedWeights> grouped;  // instead of all below but o_proj
  at::Tensor q_a_proj;                    // [Lq, D]
  at::Tensor q_a_layernorm;               // [Lq]
  at::Tensor q_b_proj;                    // [H * E, Lq], each head nope first
  at::Tensor kv_a_proj_with_mqa;          // [R + P, D]
  at::Tensor kv_a_layernorm;              // [R]
  at::Tensor kv_b_proj;                   // [H * (nope + Dv), R]; undefined where pack_weights made the two below of it
  at::Tensor k_up_proj, v_up_proj;        // packed [H, R, nope] and [H, Dv, R], for absorbed attention; else undefined
  at::Tensor o_proj;                      // [D, H * Dv]
  std::optional<IndexerWeights> indexer;  // absent in a model before DSA
};

struct MlpWeights {
  at::Tensor gate_proj, up_proj;  // [F, D]
  at::Tensor down_proj;           // [D, F]
};

struct MoeWeights {
  at::Tensor gate;                     // [X, D]
  at::Tensor e_score_correction_bias;  // [X], not trained by gradients
  at::Tensor gate_proj, up_proj;       // [X, M, D], the experts stacked
  at::Tensor down_proj;                // [X, D, M]
  MlpWeights shared_experts;           // M * n_shared_experts wide
};

struct LayerWeights {
  at::Tensor input_layernorm;  // [D]
  AttentionWeights self_attn;
  at::Tensor post_attention_layernorm;  // [D]
  std::optional<MlpWeights> dense;      // layers below first_k_dense_replace
  std::optional<MoeWeights> moe;        // the others
};

struct MtpWeights {
  at::Tensor embed_tokens, head;  // [V, D]; in training the very tensors of the main model
  at::Tensor enorm, hnorm;        // [D]
  at::Tensor eh_proj;             // [D, 2 D], embedding first
  LayerWeights layer;
  at::Tensor norm;  // [D]
};

// What pack_weights packed them for.
struct Packing {
  at::ScalarType type = at::kFloat;  // of activations
  bool absorbed = true;
  WeightFormat format = WeightFormat::plain;
  bool operator==(const Packing&) const = default;
};

struct Weights {
  at::Tensor embed_tokens;  // [V, D]
  std::vector<LayerWeights> layers;
  at::Tensor norm;     // [D]
  at::Tensor lm_head;  // [V, D]
  bool tied = false;   // lm_head is embed_tokens, and no parameter
  std::optional<MtpWeights> mtp;
  std::optional<Packing> packing;  // absent: masters
};

// One parameter: its official name, with '*' for the expert number where the experts are stacked.
struct Parameter {
  std::string name;
  at::Tensor* tensor;
  bool indexer() const { return name.find(".indexer.") != std::string::npos; }
  bool trained() const { return name.find("e_score_correction_bias") == std::string::npos; }
  bool decayed() const;  // matrices decay; norms, biases and embeddings do not
};

// All parameters in a fixed order. A tensor that stands twice (MTP's embedding and head in training) is listed once.
std::vector<Parameter> parameters(Weights& weights);

// Initial weights, a function of (config, seed) alone. The one table of how each tensor starts is in weights.cc.
Weights init_weights(const ModelConfig& config, uint64_t seed);

// Official names, experts apart, MTP's embedding and head written out: what a checkpoint holds.
std::map<std::string, at::Tensor> export_weights(const ModelConfig& config, Weights& weights);
// The other way; checks names and shapes (InputError). `share_mtp`: MTP uses the main model's embedding and head.
Weights import_weights(const ModelConfig& config, const std::map<std::string, at::Tensor>& tensors, bool share_mtp);

// The weights as inference reads them: matrices in the activations' type and packed (ops/linear/linear.h), without gradients.
// Those that multiply f32 at any activation type keep theirs, and vectors stay. Plain results have the same bits.
// Other formats (ops/formats.h) take all but these: of fp8 the head stays plain, as published, and kv_b_proj by head, which is
// plain again with the values of fp8 (spec D.2); of int4 the head is int8. What a format cannot hold stays plain.
// `absorbed`: for sparse attention, which needs kv_b_proj by head. What it packs it lets go of, so that masters nobody else holds
// are freed. Packed ones come back as they are; InputError where they were packed for something else.
Weights pack_weights(const ModelConfig& config, Weights weights, at::ScalarType type, bool absorbed,
                     WeightFormat format = WeightFormat::plain);

// Bytes of all weights so packed; nothing is loaded.
int64_t packed_bytes(const ModelConfig& config, const Packing& packing);

// Packed weights by name, each once: official names, '*' for the expert where experts are stacked, and k_up_proj and v_up_proj.
std::map<std::string, at::Tensor> export_packed(Weights& weights);
// The other way, without a copy; checks names, shapes and types (InputError).
Weights import_packed(const ModelConfig& config, const Packing& packing, const std::map<std::string, at::Tensor>& tensors);

}  // namespace fulgur
