#include "fulgur/model/cost.h"

#include <algorithm>
#include <cmath>

namespace fulgur {
namespace {

struct LayerParts {
  int64_t attention, indexer, dense, expert, router;
};

LayerParts layer_parts(const ModelConfig& c) {
  int64_t H = c.num_attention_heads, D = c.hidden_size, qk = c.qk_nope_head_dim + c.qk_rope_head_dim;
  LayerParts p{};
  if (!c.has_latents()) p.attention = D * (2 * H + 2 * c.key_heads()) * c.v_head_dim;
  else
    p.attention = D * c.q_lora_rank + c.q_lora_rank + c.q_lora_rank * H * qk + D * (c.kv_lora_rank + c.qk_rope_head_dim) +
                  c.kv_lora_rank + c.kv_lora_rank * H * (c.qk_nope_head_dim + c.v_head_dim) + H * c.v_head_dim * D;
  if (c.has_indexer())
    p.indexer = c.index_inputs() * c.index_n_heads * c.index_head_dim + D * c.index_n_heads +
                (c.tied_index() ? c.index_n_heads : (D + 2) * c.index_head_dim);
  p.dense = 3 * D * c.intermediate_size;
  p.expert = 3 * D * c.moe_intermediate_size;
  p.router = D * c.n_routed_experts;
  return p;
}

// Keys a token's attention reads.
double kept(const ModelConfig& c, Form form, double keys) {
  return form == Form::sparse ? std::min(keys, double(c.index_topk)) : keys;
}

// Scores and values of one layer, over `keys` keys.
double pair_flops(const ModelConfig& c, Form form, double keys) {
  double H = double(c.num_attention_heads), P = double(c.qk_rope_head_dim), R = double(c.kv_lora_rank);
  return form == Form::dense || !c.has_latents() ? 2 * H * (double(c.qk_nope_head_dim) + P + double(c.v_head_dim)) * keys
                                                 : 2 * H * (2 * R + P) * keys;
}

double indexer_pair_flops(const ModelConfig& c, double keys) { return 2 * double(c.index_n_heads * c.index_head_dim) * keys; }

}  // namespace

ParameterCount count_parameters(const ModelConfig& c) {
  auto p = layer_parts(c);
  int64_t L = c.num_hidden_layers, dense = std::min(L, c.first_k_dense_replace), moe = L - dense, D = c.hidden_size;
  int64_t shared = c.n_shared_experts * p.expert, bias = c.n_routed_experts;
  int64_t moe_layer = p.router + bias + c.n_routed_experts * p.expert + shared;
  int64_t active_moe = p.router + bias + c.num_experts_per_tok * p.expert + shared;
  int64_t common = p.attention + p.indexer + 2 * D, ends = (c.tie_word_embeddings ? 1 : 2) * c.vocab_size * D + D;
  ParameterCount out;
  out.total = ends + L * common + dense * p.dense + moe * moe_layer;
  out.active = ends + L * common + dense * p.dense + moe * active_moe;
  out.indexers = L * p.indexer;
  out.mtp = c.num_nextn_predict_layers * (2 * c.vocab_size * D + 2 * D * D + 3 * D + common + moe_layer);
  return out;
}

TokenCost token_cost(const ModelConfig& c, Form form, int64_t position, double bytes) {
  auto p = layer_parts(c);
  auto count = count_parameters(c);
  double L = double(c.num_hidden_layers), keys = kept(c, form, double(position));
  bool sparse = form == Form::sparse;
  double weights = double(count.active - c.vocab_size * c.hidden_size) - (sparse ? 0 : double(count.indexers));
  TokenCost out;
  out.attention_flops = L * pair_flops(c, form, keys);
  out.indexer_flops = sparse ? L * (2 * double(p.indexer) + indexer_pair_flops(c, double(position))) : 0;
  out.flops = 2 * (weights - (sparse ? L * double(p.indexer) : 0)) + out.attention_flops + out.indexer_flops;
  out.weight_bytes = weights * bytes;
  auto stored = stored_bytes(c, form, bytes);
  out.cache_bytes = L * (keys * stored.key + double(position) * stored.index_key);
  out.cache_bytes_per_token = L * (stored.key + (c.tied_index() ? 0 : stored.index_key));
  return out;
}

StoredBytes stored_bytes(const ModelConfig& c, Form form, double bytes) {
  double key = form == Form::dense || !c.has_latents()
                   ? double(c.key_heads() * (c.qk_nope_head_dim + c.qk_rope_head_dim + c.v_head_dim))
                   : double(c.kv_lora_rank + c.qk_rope_head_dim);
  double index_key = double(c.index_head_dim * (c.tied_index() && !c.has_latents() ? c.key_heads() : 1));
  return {bytes, key * bytes, form == Form::sparse ? index_key * bytes : 0};
}

StepCost step_cost(const ModelConfig& c, Form form, int64_t before, int64_t rows, const StoredBytes& bytes) {
  auto p = layer_parts(c);
  StepCost out;
  double head = double(c.vocab_size * c.hidden_size), layers = double(c.num_hidden_layers);
  for (int64_t row = 0; row < rows; ++row) {
    auto token = token_cost(c, form, before + row + 1, bytes.weight);
    out.flops += token.flops - 2 * head;
    out.core_flops += token.attention_flops;
    if (form == Form::sparse) out.indexer_flops += layers * indexer_pair_flops(c, double(before + row + 1));
  }
  out.core_flops += out.indexer_flops;
  out.flops += 2 * head;
  double moe_layers = double(c.num_hidden_layers - std::min(c.num_hidden_layers, c.first_k_dense_replace));
  double chosen = double(c.num_experts_per_tok), all = double(c.n_routed_experts);
  double read = all > 0 ? all * (1 - std::pow(1 - chosen / all, double(rows))) : 0;
  out.bytes = token_cost(c, form, before + rows, bytes.weight).weight_bytes;
  out.bytes += moe_layers * (read - chosen) * double(p.expert) * bytes.weight;
  // Each row has its own selection, but there are no more keys than there are.
  double seen = double(before + rows), kept_rows = std::min(seen, double(rows) * kept(c, form, seen));
  out.core_bytes = layers * (kept_rows * bytes.key + seen * bytes.index_key);
  out.bytes += out.core_bytes;
  return out;
}

double train_flops(const ModelConfig& c, TrainForm train, int64_t context) {
  Form form = train == TrainForm::sparse ? Form::sparse : Form::dense;
  auto count = count_parameters(c);
  auto p = layer_parts(c);
  double layers = double(c.num_hidden_layers + c.num_nextn_predict_layers), mean_keys = double(context + 1) / 2;
  double mean_kept = mean_keys;
  if (form == Form::sparse && context > c.index_topk)
    mean_kept = double(c.index_topk) - double(c.index_topk) * double(c.index_topk - 1) / 2 / double(context);
  int64_t D = c.hidden_size, shared_active = p.router + (c.num_experts_per_tok + c.n_shared_experts) * p.expert;
  double weights = double(count.active - c.vocab_size * D - count.indexers) +
                   double(c.num_nextn_predict_layers * (2 * D * D + p.attention + shared_active + c.vocab_size * D));
  double forward = 2 * weights + layers * pair_flops(c, form, mean_kept);
  double indexer_forward = layers * (2 * double(p.indexer) + indexer_pair_flops(c, mean_keys));
  if (train == TrainForm::pretrain) return 3 * forward;
  // The target needs the main scores once more; the indexer's gradient flows over the keys of the loss alone.
  double kl = layers * (2 * double(p.indexer) + indexer_pair_flops(c, mean_kept)) * 2;
  if (train == TrainForm::warmup) return forward + indexer_forward + kl + layers * pair_flops(c, form, mean_kept) / 2;
  return 3 * forward + indexer_forward + kl;
}

Json cost_json(const ModelConfig& c) {
  auto p = count_parameters(c);
  Json out = {
      {"parameters", p.total}, {"active", p.active}, {"indexers", p.indexers}, {"mtp", p.mtp}, {"positions", Json::array()}};
  for (int64_t position = 1024; position <= 131072; position *= 2)
    for (auto [name, form] : {std::pair("dense", Form::dense), std::pair("dense_absorbed", Form::dense_absorbed),
                              std::pair("sparse", Form::sparse)}) {
      auto t = token_cost(c, form, position, 4);
      out["positions"].push_back({{"form", name},
                                  {"position", position},
                                  {"flops", t.flops},
                                  {"attention_flops", t.attention_flops},
                                  {"indexer_flops", t.indexer_flops},
                                  {"weight_bytes", t.weight_bytes},
                                  {"cache_bytes", t.cache_bytes}});
    }
  return out;
}

}  // namespace fulgur
