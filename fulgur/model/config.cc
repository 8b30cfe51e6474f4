#include "fulgur/model/config.h"

#include <cmath>
#include <functional>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

// Reads one key after the other; errors name the file and the key.
class Reader {
 public:
  Reader(const Json& json, std::string name) : json_(json), name_(std::move(name)) {
    FULGUR_CHECK(json.is_object(), "[config] ", name_, ": expected a JSON object, got ", json.type_name());
  }

  void integer(const char* key, int64_t& field, bool required = true) const {
    if (!has(key, required)) return;
    FULGUR_CHECK(json_[key].is_number_integer(), "[config] ", name_, ": ", key, ": expected an integer, got ", json_[key].dump());
    field = json_[key].get<int64_t>();
  }
  void number(const char* key, double& field, bool required = false) const {
    if (!has(key, required)) return;
    FULGUR_CHECK(json_[key].is_number(), "[config] ", name_, ": ", key, ": expected a number, got ", json_[key].dump());
    field = json_[key].get<double>();
  }
  void text(const char* key, std::string& field, bool required = false) const {
    if (!has(key, required)) return;
    FULGUR_CHECK(json_[key].is_string(), "[config] ", name_, ": ", key, ": expected a string, got ", json_[key].dump());
    field = json_[key].get<std::string>();
  }
  void boolean(const char* key, bool& field) const {
    if (!has(key, false)) return;
    FULGUR_CHECK(json_[key].is_boolean(), "[config] ", name_, ": ", key, ": expected true or false, got ", json_[key].dump());
    field = json_[key].get<bool>();
  }
  // A variant this code does not have must not be read as one it has.
  void only(const char* key, const Json& value) const {
    if (!has(key, false)) return;
    FULGUR_CHECK(json_[key] == value, "[config] ", name_, ": ", key, ": expected ", value.dump(), ", got ", json_[key].dump(),
                 "\n  hint: other variants of this setting are not part of DeepSeek-V3.2");
  }

 private:
  bool has(const char* key, bool required) const {
    bool there = json_.contains(key) && !json_[key].is_null();
    FULGUR_CHECK(there || !required, "[config] ", name_, ": expected the key ", key, ", got none");
    return there;
  }
  const Json& json_;
  std::string name_;
};

void read_indexer(const Reader& read, ModelConfig& c) {
  read.integer("index_n_heads", c.index_n_heads);
  read.integer("index_head_dim", c.index_head_dim);
  read.integer("index_topk", c.index_topk);
  read.text("index_keys", c.index_keys);
}

// Hugging Face's Llama: plain rotation, no biases.
void read_llama(const Json& json, const Reader& read, ModelConfig& c) {
  c.first_k_dense_replace = c.num_hidden_layers;
  read.integer("num_key_value_heads", c.num_key_value_heads, false);
  c.v_head_dim = c.num_attention_heads > 0 ? c.hidden_size / c.num_attention_heads : 0;
  read.integer("head_dim", c.v_head_dim, false);
  c.qk_rope_head_dim = c.v_head_dim;
  read.boolean("tie_word_embeddings", c.tie_word_embeddings);
  read.integer("index_topk", c.index_topk, false);
  if (c.has_indexer()) read_indexer(read, c);
  read.only("mlp_bias", false);
  read.only("rope_scaling", nullptr);
  if (!json.contains("rope_parameters") || !json["rope_parameters"].is_object()) return;
  Reader rope(json["rope_parameters"], "rope_parameters");
  rope.only("rope_type", "default");
  rope.number("rope_theta", c.rope_theta);
}

void read_latents(const Reader& read, ModelConfig& c) {
  read.integer("moe_intermediate_size", c.moe_intermediate_size);
  read.integer("first_k_dense_replace", c.first_k_dense_replace);
  read.integer("num_nextn_predict_layers", c.num_nextn_predict_layers, false);
  read.integer("q_lora_rank", c.q_lora_rank);
  read.integer("kv_lora_rank", c.kv_lora_rank);
  read.integer("qk_nope_head_dim", c.qk_nope_head_dim);
  read.integer("qk_rope_head_dim", c.qk_rope_head_dim);
  read.integer("v_head_dim", c.v_head_dim);
  read.integer("n_routed_experts", c.n_routed_experts);
  read.integer("n_shared_experts", c.n_shared_experts);
  read.integer("num_experts_per_tok", c.num_experts_per_tok);
  read.integer("n_group", c.n_group, false);
  read.integer("topk_group", c.topk_group, false);
  read.boolean("norm_topk_prob", c.norm_topk_prob);
  read.number("routed_scaling_factor", c.routed_scaling_factor);
  if (c.has_indexer()) read_indexer(read, c);
  read.only("scoring_func", "sigmoid");
  read.only("topk_method", "noaux_tc");
  read.only("tie_word_embeddings", false);
  read.only("moe_layer_freq", 1);
}

RopeScaling parse_rope_scaling(const Json& json, const std::string& name) {
  Reader read(json, name + ": rope_scaling");
  std::string type;
  read.text("rope_type", type);
  read.text("type", type);
  FULGUR_CHECK(type == "yarn", "[config] ", name, ": rope_scaling.type: expected yarn, got ", Json(type).dump());
  RopeScaling scaling;
  read.number("factor", scaling.factor, true);
  read.number("beta_fast", scaling.beta_fast);
  read.number("beta_slow", scaling.beta_slow);
  read.number("mscale", scaling.mscale);
  read.number("mscale_all_dim", scaling.mscale_all_dim);
  read.integer("original_max_position_embeddings", scaling.original_max_position_embeddings);
  return scaling;
}

}  // namespace

ModelConfig parse_config(const Json& json, const std::string& name) {
  Reader read(json, name);
  ModelConfig c;
  read.text("model_type", c.model_type, true);
  FULGUR_CHECK(c.model_type == "deepseek_v32" || c.model_type == "deepseek_v3" || c.model_type == "llama", "[config] ", name,
               ": model_type: expected deepseek_v32, deepseek_v3 or llama, got ", Json(c.model_type).dump());
  read.integer("vocab_size", c.vocab_size);
  read.integer("hidden_size", c.hidden_size);
  read.integer("intermediate_size", c.intermediate_size);
  read.integer("num_hidden_layers", c.num_hidden_layers);
  read.integer("num_attention_heads", c.num_attention_heads);
  read.number("rms_norm_eps", c.rms_norm_eps);
  read.number("rope_theta", c.rope_theta);
  read.integer("max_position_embeddings", c.max_position_embeddings, false);
  read.number("initializer_range", c.initializer_range);
  read.integer("bos_token_id", c.bos_token_id, false);
  read.integer("eos_token_id", c.eos_token_id, false);
  read.text("torch_dtype", c.torch_dtype);
  read.only("hidden_act", "silu");
  read.only("attention_bias", false);
  if (c.has_latents()) read_latents(read, c);
  else read_llama(json, read, c);
  if (c.has_latents() && json.contains("rope_scaling") && !json["rope_scaling"].is_null())
    c.rope_scaling = parse_rope_scaling(json["rope_scaling"], name);
  validate(c, name);
  return c;
}

namespace {

constexpr int64_t kLargest = int64_t(1) << 30;  // products of two sizes stay far from overflow

using Require = std::function<void(bool good, const char* key, const std::string& expected, double got)>;

void validate_latents(const ModelConfig& c, const Require& require) {
  require(c.num_nextn_predict_layers >= 0 && c.num_nextn_predict_layers <= 1, "num_nextn_predict_layers", "0 or 1",
          double(c.num_nextn_predict_layers));
  require(c.n_routed_experts % c.n_group == 0, "n_group", cat("groups that divide ", c.n_routed_experts, " experts"),
          double(c.n_group));
  require(c.topk_group <= c.n_group, "topk_group", cat("at most n_group ", c.n_group), double(c.topk_group));
  int64_t reachable = c.topk_group * (c.n_routed_experts / c.n_group);
  require(c.num_experts_per_tok <= reachable, "num_experts_per_tok",
          cat("at most the ", reachable, " experts of the kept groups"), double(c.num_experts_per_tok));
  if (c.rope_scaling) {
    require(c.rope_scaling->factor >= 1, "rope_scaling.factor", "1 or more", c.rope_scaling->factor);
    require(c.rope_scaling->original_max_position_embeddings > 0, "rope_scaling.original_max_position_embeddings",
            "a positive length", double(c.rope_scaling->original_max_position_embeddings));
  }
  if (!c.has_indexer()) return;
  require(c.index_head_dim >= c.qk_rope_head_dim, "index_head_dim", cat("at least qk_rope_head_dim ", c.qk_rope_head_dim),
          double(c.index_head_dim));
}

}  // namespace

namespace {

void validate_indexer(const ModelConfig& c, const std::string& name, const Require& require) {
  for (auto [key, value] :
       {std::pair("index_n_heads", c.index_n_heads), {"index_head_dim", c.index_head_dim}, {"index_topk", c.index_topk}})
    require(value > 0 && value <= kLargest, key, cat("a size from 1 to ", kLargest), double(value));
  FULGUR_CHECK(c.index_keys == "own" || c.index_keys == "tied", "[config] ", name, ": index_keys: expected own or tied, got ",
               c.index_keys);
  if (!c.tied_index()) return;
  require(c.index_head_dim == c.tied_key_size(), "index_head_dim", cat("the size of the keys, ", c.tied_key_size()),
          double(c.index_head_dim));
  require(c.has_latents() || c.index_n_heads % c.key_heads() == 0, "index_n_heads",
          cat("a multiple of ", c.key_heads(), " heads of keys"), double(c.index_n_heads));
}

}  // namespace

void validate(const ModelConfig& c, const std::string& name) {
  auto require = [&](bool good, const char* key, const std::string& expected, double got) {
    std::string said = std::fabs(got) < 1e15 && got == std::floor(got) ? cat(int64_t(got)) : cat(got);
    FULGUR_CHECK(good, "[config] ", name, ": ", key, ": expected ", expected, ", got ", said);
  };
  auto size = [&](const char* key, int64_t value) {
    require(value > 0 && value <= kLargest, key, cat("a size from 1 to ", kLargest), double(value));
  };
  size("vocab_size", c.vocab_size), size("hidden_size", c.hidden_size), size("intermediate_size", c.intermediate_size);
  size("num_attention_heads", c.num_attention_heads), size("qk_rope_head_dim", c.qk_rope_head_dim);
  size("v_head_dim", c.v_head_dim);
  if (c.has_latents()) {
    size("moe_intermediate_size", c.moe_intermediate_size);
    size("q_lora_rank", c.q_lora_rank), size("kv_lora_rank", c.kv_lora_rank), size("qk_nope_head_dim", c.qk_nope_head_dim);
    size("n_routed_experts", c.n_routed_experts), size("n_shared_experts", c.n_shared_experts);
    size("num_experts_per_tok", c.num_experts_per_tok), size("n_group", c.n_group), size("topk_group", c.topk_group);
  } else {
    size("num_key_value_heads", c.key_heads());
    require(c.num_attention_heads % c.key_heads() == 0, "num_key_value_heads",
            cat("a number that divides ", c.num_attention_heads, " heads"), double(c.key_heads()));
  }
  if (c.has_indexer()) validate_indexer(c, name, require);
  require(c.num_hidden_layers > 0 && c.num_hidden_layers <= 10000, "num_hidden_layers", "1 to 10000 layers",
          double(c.num_hidden_layers));
  require(c.first_k_dense_replace >= 0 && c.first_k_dense_replace <= c.num_hidden_layers, "first_k_dense_replace",
          cat("0 to num_hidden_layers ", c.num_hidden_layers), double(c.first_k_dense_replace));
  require(c.qk_rope_head_dim % 2 == 0, "qk_rope_head_dim", "an even size (pairs are rotated)", double(c.qk_rope_head_dim));
  require(c.rms_norm_eps > 0, "rms_norm_eps", "a positive number", c.rms_norm_eps);
  require(c.rope_theta > 1, "rope_theta", "a number above 1", c.rope_theta);
  require(c.initializer_range >= 0, "initializer_range", "0 or more", c.initializer_range);
  if (c.has_latents()) validate_latents(c, require);
}

ModelConfig read_config(const std::filesystem::path& path) { return parse_config(read_json(path), path.string()); }

namespace {

Json indexer_json(const ModelConfig& c) {
  Json json = {{"index_head_dim", c.index_head_dim}, {"index_n_heads", c.index_n_heads}, {"index_topk", c.index_topk}};
  if (c.tied_index()) json["index_keys"] = c.index_keys;
  return json;
}

Json llama_json(const ModelConfig& c) {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", c.model_type},
          {"attention_bias", false},
          {"bos_token_id", c.bos_token_id < 0 ? Json() : Json(c.bos_token_id)},
          {"eos_token_id", c.eos_token_id},
          {"head_dim", c.v_head_dim},
          {"hidden_act", "silu"},
          {"hidden_size", c.hidden_size},
          {"initializer_range", c.initializer_range},
          {"intermediate_size", c.intermediate_size},
          {"max_position_embeddings", c.max_position_embeddings},
          {"mlp_bias", false},
          {"num_attention_heads", c.num_attention_heads},
          {"num_hidden_layers", c.num_hidden_layers},
          {"num_key_value_heads", c.key_heads()},
          {"rms_norm_eps", c.rms_norm_eps},
          {"rope_theta", c.rope_theta},
          {"tie_word_embeddings", c.tie_word_embeddings},
          {"torch_dtype", c.torch_dtype},
          {"vocab_size", c.vocab_size}};
}

}  // namespace

Json config_json(const ModelConfig& c) {
  if (!c.has_latents()) {
    Json json = llama_json(c);
    if (c.has_indexer()) json.update(indexer_json(c));
    return json;
  }
  Json json = {{"architectures", {c.has_indexer() ? "DeepseekV32ForCausalLM" : "DeepseekV3ForCausalLM"}},
               {"model_type", c.model_type},
               {"attention_bias", false},
               {"bos_token_id", c.bos_token_id},
               {"eos_token_id", c.eos_token_id},
               {"first_k_dense_replace", c.first_k_dense_replace},
               {"hidden_act", "silu"},
               {"hidden_size", c.hidden_size},
               {"initializer_range", c.initializer_range},
               {"intermediate_size", c.intermediate_size},
               {"kv_lora_rank", c.kv_lora_rank},
               {"max_position_embeddings", c.max_position_embeddings},
               {"moe_intermediate_size", c.moe_intermediate_size},
               {"moe_layer_freq", 1},
               {"n_group", c.n_group},
               {"n_routed_experts", c.n_routed_experts},
               {"n_shared_experts", c.n_shared_experts},
               {"norm_topk_prob", c.norm_topk_prob},
               {"num_attention_heads", c.num_attention_heads},
               {"num_experts_per_tok", c.num_experts_per_tok},
               {"num_hidden_layers", c.num_hidden_layers},
               {"num_key_value_heads", c.num_attention_heads},
               {"num_nextn_predict_layers", c.num_nextn_predict_layers},
               {"q_lora_rank", c.q_lora_rank},
               {"qk_nope_head_dim", c.qk_nope_head_dim},
               {"qk_rope_head_dim", c.qk_rope_head_dim},
               {"rms_norm_eps", c.rms_norm_eps},
               {"rope_theta", c.rope_theta},
               {"routed_scaling_factor", c.routed_scaling_factor},
               {"scoring_func", "sigmoid"},
               {"tie_word_embeddings", false},
               {"topk_group", c.topk_group},
               {"topk_method", "noaux_tc"},
               {"torch_dtype", c.torch_dtype},
               {"v_head_dim", c.v_head_dim},
               {"vocab_size", c.vocab_size}};
  if (c.has_indexer()) json.update(indexer_json(c));
  if (const auto& s = c.rope_scaling)
    json["rope_scaling"] = {{"type", "yarn"},
                            {"factor", s->factor},
                            {"beta_fast", s->beta_fast},
                            {"beta_slow", s->beta_slow},
                            {"mscale", s->mscale},
                            {"mscale_all_dim", s->mscale_all_dim},
                            {"original_max_position_embeddings", s->original_max_position_embeddings}};
  return json;
}

}  // namespace fulgur
