#include "fulgur/model/names.h"

#include <set>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

using Specs = std::vector<TensorSpec>;

void add_mlp(Specs& out, const std::string& prefix, int64_t hidden, int64_t inner) {
  out.push_back({prefix + "gate_proj.weight", {inner, hidden}});
  out.push_back({prefix + "up_proj.weight", {inner, hidden}});
  out.push_back({prefix + "down_proj.weight", {hidden, inner}});
}

void add_indexer(Specs& out, const std::string& prefix, const ModelConfig& c) {
  int64_t D = c.hidden_size, J = c.index_n_heads, Di = c.index_head_dim;
  out.push_back({prefix + "wq_b.weight", {J * Di, c.index_inputs()}});
  if (!c.tied_index()) {
    out.push_back({prefix + "wk.weight", {Di, D}});
    out.push_back({prefix + "k_norm.weight", {Di}});
    out.push_back({prefix + "k_norm.bias", {Di}});
  }
  out.push_back({prefix + "weights_proj.weight", {J, D}});
  if (c.tied_index()) out.push_back({prefix + "weights_proj.bias", {J}});
}

void add_attention(Specs& out, const std::string& prefix, const ModelConfig& c) {
  int64_t H = c.num_attention_heads, D = c.hidden_size;
  if (!c.has_latents()) {
    out.push_back({prefix + "q_proj.weight", {H * c.qk_rope_head_dim, D}});
    out.push_back({prefix + "k_proj.weight", {c.key_heads() * c.qk_rope_head_dim, D}});
    out.push_back({prefix + "v_proj.weight", {c.key_heads() * c.v_head_dim, D}});
    out.push_back({prefix + "o_proj.weight", {D, H * c.v_head_dim}});
    if (c.has_indexer()) add_indexer(out, prefix + "indexer.", c);
    return;
  }
  out.push_back({prefix + "q_a_proj.weight", {c.q_lora_rank, D}});
  out.push_back({prefix + "q_a_layernorm.weight", {c.q_lora_rank}});
  out.push_back({prefix + "q_b_proj.weight", {H * (c.qk_nope_head_dim + c.qk_rope_head_dim), c.q_lora_rank}});
  out.push_back({prefix + "kv_a_proj_with_mqa.weight", {c.kv_lora_rank + c.qk_rope_head_dim, D}});
  out.push_back({prefix + "kv_a_layernorm.weight", {c.kv_lora_rank}});
  out.push_back({prefix + "kv_b_proj.weight", {H * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank}});
  out.push_back({prefix + "o_proj.weight", {D, H * c.v_head_dim}});
  if (c.has_indexer()) add_indexer(out, prefix + "indexer.", c);
}

void add_layer(Specs& out, const std::string& prefix, const ModelConfig& c, bool moe) {
  int64_t D = c.hidden_size;
  out.push_back({prefix + "input_layernorm.weight", {D}});
  add_attention(out, prefix + "self_attn.", c);
  out.push_back({prefix + "post_attention_layernorm.weight", {D}});
  if (!moe) return add_mlp(out, prefix + "mlp.", D, c.intermediate_size);
  out.push_back({prefix + "mlp.gate.weight", {c.n_routed_experts, D}});
  out.push_back({prefix + "mlp.gate.e_score_correction_bias", {c.n_routed_experts}});
  for (int64_t e = 0; e < c.n_routed_experts; ++e) add_mlp(out, cat(prefix, "mlp.experts.", e, "."), D, c.moe_intermediate_size);
  add_mlp(out, prefix + "mlp.shared_experts.", D, c.moe_intermediate_size * c.n_shared_experts);
}

}  // namespace

std::string expert_name(const std::string& name, int64_t expert) {
  auto star = name.find('*');
  return name.substr(0, star) + std::to_string(expert) + name.substr(star + 1);
}

std::vector<TensorSpec> tensor_specs(const ModelConfig& c) {
  int64_t D = c.hidden_size, V = c.vocab_size;
  Specs out{{"model.embed_tokens.weight", {V, D}}};
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) add_layer(out, cat("model.layers.", i, "."), c, c.is_moe(i));
  out.push_back({"model.norm.weight", {D}});
  if (!c.tie_word_embeddings) out.push_back({"lm_head.weight", {V, D}});
  if (c.num_nextn_predict_layers == 0) return out;
  auto prefix = cat("model.layers.", c.num_hidden_layers, ".");
  out.push_back({prefix + "embed_tokens.weight", {V, D}});
  out.push_back({prefix + "enorm.weight", {D}});
  out.push_back({prefix + "hnorm.weight", {D}});
  out.push_back({prefix + "eh_proj.weight", {D, 2 * D}});
  add_layer(out, prefix, c, true);
  out.push_back({prefix + "shared_head.norm.weight", {D}});
  out.push_back({prefix + "shared_head.head.weight", {V, D}});
  return out;
}

void check_weights(const ModelConfig& config, const std::map<std::string, at::Tensor>& tensors) {
  std::set<std::string> known;
  for (const auto& [name, shape] : tensor_specs(config)) {
    known.insert(name);
    auto found = tensors.find(name);
    FULGUR_CHECK(found != tensors.end(), "[weights] tensor ", name, ": expected ", at::IntArrayRef(shape), ", got none",
                 "\n  hint: config.json and the weights belong to different models, or a shard is missing");
    FULGUR_CHECK(found->second.sizes() == at::IntArrayRef(shape), "[weights] tensor ", name, ": expected ",
                 at::IntArrayRef(shape), ", got ", found->second.sizes());
  }
  for (const auto& [name, tensor] : tensors)
    FULGUR_CHECK(known.contains(name), "[weights] tensor ", name, ": expected no such tensor in this model, got ",
                 tensor.sizes());
}

}  // namespace fulgur
