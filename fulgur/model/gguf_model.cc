#include "fulgur/model/gguf_model.h"

#include <ATen/ops/cat.h>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/model/names.h"

namespace fulgur {
namespace {

// llama.cpp's names of a layer's tensors, and Hugging Face's, '*' for the expert where it has them apart.
constexpr std::pair<const char*, const char*> kLayerNames[] = {{"attn_norm.weight", "input_layernorm.weight"},
                                                               {"attn_q.weight", "self_attn.q_proj.weight"},
                                                               {"attn_k.weight", "self_attn.k_proj.weight"},
                                                               {"attn_v.weight", "self_attn.v_proj.weight"},
                                                               {"attn_q_a.weight", "self_attn.q_a_proj.weight"},
                                                               {"attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight"},
                                                               {"attn_q_b.weight", "self_attn.q_b_proj.weight"},
                                                               {"attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight"},
                                                               {"attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight"},
                                                               {"attn_kv_b.weight", "self_attn.kv_b_proj.weight"},
                                                               {"attn_output.weight", "self_attn.o_proj.weight"},
                                                               {"indexer.attn_q_b.weight", "self_attn.indexer.wq_b.weight"},
                                                               {"indexer.attn_k.weight", "self_attn.indexer.wk.weight"},
                                                               {"indexer.k_norm.weight", "self_attn.indexer.k_norm.weight"},
                                                               {"indexer.k_norm.bias", "self_attn.indexer.k_norm.bias"},
                                                               {"indexer.proj.weight", "self_attn.indexer.weights_proj.weight"},
                                                               {"ffn_norm.weight", "post_attention_layernorm.weight"},
                                                               {"ffn_gate.weight", "mlp.gate_proj.weight"},
                                                               {"ffn_up.weight", "mlp.up_proj.weight"},
                                                               {"ffn_down.weight", "mlp.down_proj.weight"},
                                                               {"ffn_gate_inp.weight", "mlp.gate.weight"},
                                                               {"exp_probs_b.bias", "mlp.gate.e_score_correction_bias"},
                                                               {"ffn_gate_exps.weight", "mlp.experts.*.gate_proj.weight"},
                                                               {"ffn_up_exps.weight", "mlp.experts.*.up_proj.weight"},
                                                               {"ffn_down_exps.weight", "mlp.experts.*.down_proj.weight"},
                                                               {"ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight"},
                                                               {"ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight"},
                                                               {"ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight"},
                                                               {"nextn.embed_tokens.weight", "embed_tokens.weight"},
                                                               {"nextn.enorm.weight", "enorm.weight"},
                                                               {"nextn.hnorm.weight", "hnorm.weight"},
                                                               {"nextn.eh_proj.weight", "eh_proj.weight"},
                                                               {"nextn.shared_head_norm.weight", "shared_head.norm.weight"},
                                                               {"nextn.shared_head_head.weight", "shared_head.head.weight"}};

// llama.cpp rotates pairs side by side and has put the rows so; here a head's first half turns with its second.
at::Tensor by_halves(const at::Tensor& rows, int64_t head_dim) {
  FULGUR_CHECK(rows.dim() == 2 && rows.size(0) % head_dim == 0, "[gguf] expected rows of heads of ", head_dim, ", got ",
               rows.sizes());
  return rows.view({-1, head_dim / 2, 2, rows.size(1)}).transpose(1, 2).contiguous().view(rows.sizes());
}

// Keys of a file's own architecture.
class Keys {
 public:
  explicit Keys(const Gguf& file) : file_(file), prefix_(file.text("general.architecture") + ".") {}
  bool has(const char* key) const { return file_.has(prefix_ + key); }
  int64_t integer(const char* key) const { return file_.integer(prefix_ + key); }
  int64_t integer(const char* key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }
  double number(const char* key) const { return file_.number(prefix_ + key); }
  double number(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  // Throws where the key is there and says something else.
  void expect(const char* key, int64_t only) const {
    FULGUR_CHECK(integer(key, only) == only, "[gguf] ", file_.name(), ": ", prefix_, key, ": expected ", only, ", got ",
                 integer(key, only));
  }

 private:
  const Gguf& file_;
  std::string prefix_;
};

void read_llama(const Gguf& file, const Keys& keys, ModelConfig& c) {
  c.model_type = "llama";
  keys.expect("expert_count", 0);
  for (const char* key : {"llama.rope.scaling.type", "rope_freqs.weight"})
    FULGUR_CHECK(!file.has(key) && !file.tensors().contains(key), "[gguf] ", file.name(), ": expected plain rotation, got ", key);
  c.first_k_dense_replace = c.num_hidden_layers;
  c.num_key_value_heads = keys.integer("attention.head_count_kv", c.num_attention_heads);
  c.v_head_dim = keys.integer("attention.key_length", c.hidden_size / c.num_attention_heads);
  c.qk_rope_head_dim = c.v_head_dim;
  keys.expect("rope.dimension_count", c.v_head_dim);
}

// With MLA's own lengths where llama.cpp runs the absorbed form, whose keys are longer.
void read_deepseek(const Gguf& file, const Keys& keys, ModelConfig& c) {
  c.model_type = file.text("general.architecture") == "deepseek32" ? "deepseek_v32" : "deepseek_v3";
  keys.expect("expert_gating_func", 2);  // sigmoid
  c.first_k_dense_replace = keys.integer("leading_dense_block_count", 0);
  c.q_lora_rank = keys.integer("attention.q_lora_rank"), c.kv_lora_rank = keys.integer("attention.kv_lora_rank");
  c.qk_rope_head_dim = keys.integer("rope.dimension_count");
  c.qk_nope_head_dim = keys.integer(keys.has("attention.key_length_mla") ? "attention.key_length_mla" : "attention.key_length") -
                       c.qk_rope_head_dim;
  c.v_head_dim = keys.integer(keys.has("attention.value_length_mla") ? "attention.value_length_mla" : "attention.value_length");
  c.n_routed_experts = keys.integer("expert_count"), c.num_experts_per_tok = keys.integer("expert_used_count");
  c.n_shared_experts = keys.integer("expert_shared_count"), c.moe_intermediate_size = keys.integer("expert_feed_forward_length");
  c.n_group = keys.integer("expert_group_count", 1), c.topk_group = keys.integer("expert_group_used_count", 1);
  c.routed_scaling_factor = keys.number("expert_weights_scale", 1);
  if (c.has_indexer())
    c.index_n_heads = keys.integer("attention.indexer.head_count"),
    c.index_head_dim = keys.integer("attention.indexer.key_length"), c.index_topk = keys.integer("attention.indexer.top_k");
  if (keys.has("nextn_predict_layers") && file.tensors().contains(cat("blk.", c.num_hidden_layers - 1, ".nextn.eh_proj.weight")))
    c.num_nextn_predict_layers = keys.integer("nextn_predict_layers"), c.num_hidden_layers -= c.num_nextn_predict_layers;
  if (!keys.has("rope.scaling.factor")) return;
  RopeScaling& yarn = c.rope_scaling.emplace();
  yarn.factor = keys.number("rope.scaling.factor");
  yarn.original_max_position_embeddings = keys.integer("rope.scaling.original_context_length");
  yarn.mscale = yarn.mscale_all_dim = keys.number("rope.scaling.yarn_log_multiplier", 0.1) / 0.1;
}

// kv_b_proj of keys [H, R, nope] and values [H, Dv, R] by head.
at::Tensor joined(const at::Tensor& k_HRN, const at::Tensor& v_HVR) {
  FULGUR_CHECK(k_HRN.dim() == 3 && v_HVR.dim() == 3 && k_HRN.size(0) == v_HVR.size(0) && k_HRN.size(1) == v_HVR.size(2),
               "[gguf] attn_k_b, attn_v_b: expected [heads, rank, nope] and [heads, values, rank], got ", k_HRN.sizes(), " and ",
               v_HVR.sizes());
  return at::cat({k_HRN.transpose(1, 2), v_HVR}, 1).contiguous().flatten(0, 1);
}

}  // namespace

ModelConfig gguf_config(const Gguf& file) {
  auto architecture = file.text("general.architecture");
  FULGUR_CHECK(architecture == "llama" || architecture == "deepseek2" || architecture == "deepseek32", "[gguf] ", file.name(),
               ": general.architecture: expected llama, deepseek2 or deepseek32, got ", architecture);
  Keys keys(file);
  ModelConfig c;
  c.num_hidden_layers = keys.integer("block_count");
  c.hidden_size = keys.integer("embedding_length"), c.intermediate_size = keys.integer("feed_forward_length");
  c.num_attention_heads = keys.integer("attention.head_count");
  FULGUR_CHECK(c.num_attention_heads > 0, "[gguf] ", file.name(), ": ", architecture,
               ".attention.head_count: expected a head, got ", c.num_attention_heads);
  c.rms_norm_eps = keys.number("attention.layer_norm_rms_epsilon");
  c.rope_theta = keys.number("rope.freq_base", 10000);
  c.max_position_embeddings = keys.integer("context_length");
  if (architecture == "llama") read_llama(file, keys, c);
  else read_deepseek(file, keys, c);
  auto embedding = file.tensors().find("token_embd.weight");
  FULGUR_CHECK(embedding != file.tensors().end() && embedding->second.shape.size() == 2, "[gguf] ", file.name(),
               ": expected a table token_embd.weight, got none");
  c.vocab_size = embedding->second.shape[0];
  c.tie_word_embeddings = !c.has_latents() && !file.tensors().contains("output.weight");
  bool begins = file.has("tokenizer.ggml.add_bos_token") && file.metadata()["tokenizer.ggml.add_bos_token"] == true;
  c.bos_token_id = begins ? file.integer("tokenizer.ggml.bos_token_id") : -1;
  c.eos_token_id = file.has("tokenizer.ggml.eos_token_id") ? file.integer("tokenizer.ggml.eos_token_id") : -1;
  validate(c, file.name());
  return c;
}

std::map<std::string, at::Tensor> gguf_tensors(const Gguf& file, const ModelConfig& config) {
  std::vector<std::pair<std::string, std::string>> names;
  auto name = [&](const std::string& from, const std::string& to) {
    if (file.tensors().contains(from)) names.emplace_back(from, to);  // check_weights says what is missing, by its usual name
  };
  name("token_embd.weight", "model.embed_tokens.weight"), name("output_norm.weight", "model.norm.weight");
  if (!config.tie_word_embeddings) name("output.weight", "lm_head.weight");
  int64_t layers = config.num_hidden_layers + config.num_nextn_predict_layers;
  for (int64_t i = 0; i < layers; ++i)
    for (auto [from, to] : kLayerNames) name(cat("blk.", i, ".", from), cat("model.layers.", i, ".", to));
  std::vector<at::Tensor> tensors(names.size());
  parallel_for(int64_t(names.size()), [&](int64_t i) {
    const auto& from = names[i].first;
    auto tensor = file.read(from);
    const auto& to = names[i].second;
    bool turned = to.ends_with("self_attn.q_proj.weight") || to.ends_with("self_attn.k_proj.weight");
    tensors[i] = turned ? by_halves(tensor, config.v_head_dim) : tensor;
  });
  std::map<std::string, at::Tensor> out;
  for (size_t i = 0; i < names.size(); ++i) {
    const auto& to = names[i].second;
    if (to.find('*') == std::string::npos) out[to] = tensors[i];
    else
      for (int64_t e = 0; e < tensors[i].size(0); ++e) out[expert_name(to, e)] = tensors[i].select(0, e);
  }
  for (int64_t i = 0; i < layers; ++i)
    if (auto k = cat("blk.", i, ".attn_k_b.weight"), v = cat("blk.", i, ".attn_v_b.weight");
        file.tensors().contains(k) && file.tensors().contains(v))
      out[cat("model.layers.", i, ".self_attn.kv_b_proj.weight")] = joined(file.read(k), file.read(v));
  // An MTP layer may leave its embedding and head to the model.
  if (auto last = cat("model.layers.", config.num_hidden_layers, "."); config.num_nextn_predict_layers > 0) {
    out.try_emplace(last + "embed_tokens.weight", out["model.embed_tokens.weight"]);
    out.try_emplace(last + "shared_head.head.weight", out["lm_head.weight"]);
  }
  return out;
}

Vocabulary gguf_vocabulary(const Gguf& file) {
  auto model = file.text("tokenizer.ggml.model");
  FULGUR_CHECK(model == "gpt2", "[gguf] ", file.name(), ": tokenizer.ggml.model: expected gpt2, a byte-level BPE, got ", model);
  auto pre = file.has("tokenizer.ggml.pre") ? file.text("tokenizer.ggml.pre") : "default";
  return gguf_vocabulary(file.texts("tokenizer.ggml.tokens"), file.integers("tokenizer.ggml.token_type"),
                         file.texts("tokenizer.ggml.merges"), pre, file.name());
}

}  // namespace fulgur
