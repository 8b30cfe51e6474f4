// A model's shape, by the keys of the official config.json (spec A.1). No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "fulgur/base/json.h"

namespace fulgur {

struct RopeScaling {  // YaRN
  double factor = 1;
  double beta_fast = 32, beta_slow = 1;
  double mscale = 1, mscale_all_dim = 1;
  int64_t original_max_position_embeddings = 4096;
};

struct ModelConfig {
  // deepseek_v3: the same without an indexer. llama: grouped-query attention instead of MLA, all layers dense; its heads' size is
  // qk_rope_head_dim and v_head_dim, and what MLA and mixtures need is 0; with an indexer where it has an index_topk.
  std::string model_type = "deepseek_v32";
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;      // dense layers
  int64_t moe_intermediate_size = 0;  // one expert
  int64_t num_hidden_layers = 0;
  int64_t first_k_dense_replace = 0;  // layers below it are dense
  int64_t num_nextn_predict_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // of llama; 0: as many as there are heads
  int64_t q_lora_rank = 0;
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t n_routed_experts = 0;
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  int64_t index_n_heads = 0;
  int64_t index_head_dim = 0;
  int64_t index_topk = 0;
  // The keys an indexer scores. own: made for it (paper 2.1). tied: the attention's own, of llama a head's, else [latent | rope].
  std::string index_keys = "own";
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  std::optional<RopeScaling> rope_scaling;
  int64_t max_position_embeddings = 0;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;  // of llama: the head is the embedding
  int64_t bos_token_id = 0;          // -1: a text begins with none
  int64_t eos_token_id = 1;
  std::string torch_dtype = "float32";

  bool has_indexer() const { return model_type == "deepseek_v32" || (model_type == "llama" && index_topk > 0); }
  bool tied_index() const { return has_indexer() && index_keys == "tied"; }
  bool has_latents() const { return model_type != "llama"; }                          // MLA
  int64_t index_inputs() const { return has_latents() ? q_lora_rank : hidden_size; }  // what index queries are made of
  int64_t key_heads() const { return num_key_value_heads > 0 ? num_key_value_heads : num_attention_heads; }
  int64_t tied_key_size() const { return has_latents() ? kv_lora_rank + qk_rope_head_dim : v_head_dim; }
  bool is_moe(int64_t layer) const { return layer >= first_k_dense_replace; }
};

// Throws InputError that names the file, the key, what was expected and what was found: missing keys, wrong types,
// impossible sizes, variants this model code does not have. `name` stands for the file.
ModelConfig parse_config(const Json& json, const std::string& name);
ModelConfig read_config(const std::filesystem::path& path);
void validate(const ModelConfig& config, const std::string& name);

// The official keys, so that other software reads it too.
Json config_json(const ModelConfig& config);

}  // namespace fulgur
