#include "fulgur/model/gguf_model.h"

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"

namespace fulgur {
namespace {

// llama.cpp's names of a layer's tensors, and Hugging Face's.
constexpr std::pair<const char*, const char*> kLayerNames[] = {
    {"attn_norm", "input_layernorm"}, {"attn_q", "self_attn.q_proj"},      {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},   {"attn_output", "self_attn.o_proj"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},    {"ffn_up", "mlp.up_proj"},           {"ffn_down", "mlp.down_proj"}};

// llama.cpp rotates pairs side by side and has put the rows so; here a head's first half turns with its second.
at::Tensor by_halves(const at::Tensor& rows, int64_t head_dim) {
  FULGUR_CHECK(rows.dim() == 2 && rows.size(0) % head_dim == 0, "[gguf] expected rows of heads of ", head_dim, ", got ",
               rows.sizes());
  return rows.view({-1, head_dim / 2, 2, rows.size(1)}).transpose(1, 2).contiguous().view(rows.sizes());
}

}  // namespace

ModelConfig gguf_config(const Gguf& file) {
  auto architecture = file.text("general.architecture");
  FULGUR_CHECK(architecture == "llama", "[gguf] ", file.name(), ": general.architecture: expected llama, got ", architecture);
  auto integer = [&](const char* key) { return file.integer(cat("llama.", key)); };
  FULGUR_CHECK(!file.has("llama.expert_count") || integer("expert_count") == 0, "[gguf] ", file.name(),
               ": llama.expert_count: expected none, got ", integer("expert_count"));
  for (const char* key : {"llama.rope.scaling.type", "rope_freqs.weight"})
    FULGUR_CHECK(!file.has(key) && !file.tensors().contains(key), "[gguf] ", file.name(), ": expected plain rotation, got ", key);
  ModelConfig c;
  c.model_type = "llama";
  c.num_hidden_layers = c.first_k_dense_replace = integer("block_count");
  c.hidden_size = integer("embedding_length"), c.intermediate_size = integer("feed_forward_length");
  c.num_attention_heads = integer("attention.head_count");
  c.num_key_value_heads = file.has("llama.attention.head_count_kv") ? integer("attention.head_count_kv") : c.num_attention_heads;
  FULGUR_CHECK(c.num_attention_heads > 0, "[gguf] ", file.name(), ": llama.attention.head_count: expected a head, got ",
               c.num_attention_heads);
  c.v_head_dim = file.has("llama.attention.key_length") ? integer("attention.key_length") : c.hidden_size / c.num_attention_heads;
  c.qk_rope_head_dim = c.v_head_dim;
  FULGUR_CHECK(!file.has("llama.rope.dimension_count") || integer("rope.dimension_count") == c.v_head_dim, "[gguf] ", file.name(),
               ": llama.rope.dimension_count: expected the heads' ", c.v_head_dim, ", got ", integer("rope.dimension_count"));
  c.rms_norm_eps = file.number("llama.attention.layer_norm_rms_epsilon");
  c.rope_theta = file.has("llama.rope.freq_base") ? file.number("llama.rope.freq_base") : 10000;
  c.max_position_embeddings = integer("context_length");
  auto embedding = file.tensors().find("token_embd.weight");
  FULGUR_CHECK(embedding != file.tensors().end() && embedding->second.shape.size() == 2, "[gguf] ", file.name(),
               ": expected a table token_embd.weight, got none");
  c.vocab_size = embedding->second.shape[0];
  c.tie_word_embeddings = !file.tensors().contains("output.weight");
  bool begins = file.has("tokenizer.ggml.add_bos_token") && file.metadata()["tokenizer.ggml.add_bos_token"] == true;
  c.bos_token_id = begins ? file.integer("tokenizer.ggml.bos_token_id") : -1;
  c.eos_token_id = file.has("tokenizer.ggml.eos_token_id") ? file.integer("tokenizer.ggml.eos_token_id") : -1;
  validate(c, file.name());
  return c;
}

std::map<std::string, at::Tensor> gguf_tensors(const Gguf& file, const ModelConfig& config) {
  std::vector<std::pair<std::string, std::string>> names{{"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}};
  if (!config.tie_word_embeddings) names.emplace_back("output", "lm_head");
  for (int64_t i = 0; i < config.num_hidden_layers; ++i)
    for (auto [from, to] : kLayerNames) names.emplace_back(cat("blk.", i, ".", from), cat("model.layers.", i, ".", to));
  std::vector<at::Tensor> tensors(names.size());
  parallel_for(int64_t(names.size()), [&](int64_t i) {
    const auto& from = names[i].first;
    auto tensor = file.read(from + ".weight");
    bool turned = from.ends_with(".attn_q") || from.ends_with(".attn_k");
    tensors[i] = turned ? by_halves(tensor, config.v_head_dim) : tensor;
  });
  std::map<std::string, at::Tensor> out;
  for (size_t i = 0; i < names.size(); ++i) out[names[i].second + ".weight"] = tensors[i];
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
