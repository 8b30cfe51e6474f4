#include "fulgur/model/weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/model/names.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/quantize/quantize.h"

namespace fulgur {
namespace {

// Calls visit(name, tensor) for all tensors below `prefix`, in the order of the forward pass.
using Visit = std::function<void(const std::string&, at::Tensor&)>;

void visit_mlp(const std::string& prefix, MlpWeights& w, const Visit& visit) {
  visit(prefix + "gate_proj.weight", w.gate_proj);
  visit(prefix + "up_proj.weight", w.up_proj);
  visit(prefix + "down_proj.weight", w.down_proj);
}

void visit_indexer(const std::string& prefix, IndexerWeights& w, const Visit& visit) {
  visit(prefix + "wq_b.weight", w.wq_b);
  if (!w.tied) {
    visit(prefix + "wk.weight", w.wk);
    visit(prefix + "k_norm.weight", w.k_norm);
    visit(prefix + "k_norm.bias", w.k_norm_bias);
  }
  visit(prefix + "weights_proj.weight", w.weights_proj);
  if (w.tied) visit(prefix + "weights_proj.bias", w.weights_bias);
}

void visit_attention(const std::string& prefix, AttentionWeights& w, const Visit& visit) {
  if (w.grouped) {
    visit(prefix + "q_proj.weight", w.grouped->q_proj);
    visit(prefix + "k_proj.weight", w.grouped->k_proj);
    visit(prefix + "v_proj.weight", w.grouped->v_proj);
    visit(prefix + "o_proj.weight", w.o_proj);
    if (w.indexer) visit_indexer(prefix + "indexer.", *w.indexer, visit);
    return;
  }
  visit(prefix + "q_a_proj.weight", w.q_a_proj);
  visit(prefix + "q_a_layernorm.weight", w.q_a_layernorm);
  visit(prefix + "q_b_proj.weight", w.q_b_proj);
  visit(prefix + "kv_a_proj_with_mqa.weight", w.kv_a_proj_with_mqa);
  visit(prefix + "kv_a_layernorm.weight", w.kv_a_layernorm);
  visit(prefix + "kv_b_proj.weight", w.kv_b_proj);
  visit(prefix + "o_proj.weight", w.o_proj);
  if (w.indexer) visit_indexer(prefix + "indexer.", *w.indexer, visit);
}

void visit_layer(const std::string& prefix, LayerWeights& w, const Visit& visit) {
  visit(prefix + "input_layernorm.weight", w.input_layernorm);
  visit_attention(prefix + "self_attn.", w.self_attn, visit);
  visit(prefix + "post_attention_layernorm.weight", w.post_attention_layernorm);
  if (w.dense) visit_mlp(prefix + "mlp.", *w.dense, visit);
  if (!w.moe) return;
  visit(prefix + "mlp.gate.weight", w.moe->gate);
  visit(prefix + "mlp.gate.e_score_correction_bias", w.moe->e_score_correction_bias);
  visit(prefix + "mlp.experts.*.gate_proj.weight", w.moe->gate_proj);
  visit(prefix + "mlp.experts.*.up_proj.weight", w.moe->up_proj);
  visit(prefix + "mlp.experts.*.down_proj.weight", w.moe->down_proj);
  visit_mlp(prefix + "mlp.shared_experts.", w.moe->shared_experts, visit);
}

void visit_all(Weights& w, const Visit& visit) {
  visit("model.embed_tokens.weight", w.embed_tokens);
  for (size_t i = 0; i < w.layers.size(); ++i) visit_layer(cat("model.layers.", i, "."), w.layers[i], visit);
  visit("model.norm.weight", w.norm);
  if (!w.tied) visit("lm_head.weight", w.lm_head);
  if (!w.mtp) return;
  auto prefix = cat("model.layers.", w.layers.size(), ".");
  visit(prefix + "embed_tokens.weight", w.mtp->embed_tokens);
  visit(prefix + "enorm.weight", w.mtp->enorm);
  visit(prefix + "hnorm.weight", w.mtp->hnorm);
  visit(prefix + "eh_proj.weight", w.mtp->eh_proj);
  visit_layer(prefix, w.mtp->layer, visit);
  visit(prefix + "shared_head.norm.weight", w.mtp->norm);
  visit(prefix + "shared_head.head.weight", w.mtp->head);
}

LayerWeights empty_layer(const ModelConfig& config, bool moe) {
  LayerWeights layer;
  if (config.has_indexer()) layer.self_attn.indexer.emplace().tied = config.tied_index();
  if (!config.has_latents()) layer.self_attn.grouped.emplace();
  if (moe) layer.moe.emplace();
  else layer.dense.emplace();
  return layer;
}

// The structure without tensors: which optional parts there are.
Weights empty_weights(const ModelConfig& config) {
  Weights w;
  w.tied = config.tie_word_embeddings;
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) w.layers.push_back(empty_layer(config, config.is_moe(i)));
  if (config.num_nextn_predict_layers > 0) {
    w.mtp.emplace();
    w.mtp->layer = empty_layer(config, true);
  }
  return w;
}

bool ends_with(const std::string& name, const std::string& end) {
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

// | tensor                                    | starts as                                                    |
// |-------------------------------------------|--------------------------------------------------------------|
// | norms (RMSNorm, LayerNorm weight)         | 1                                                            |
// | LayerNorm bias, correction bias           | 0                                                            |
// | weights_proj's bias (of tied index keys)  | 1                                                            |
// | o_proj, down_proj (write to the residual) | normal, initializer_range / sqrt(2 * layers)                 |
// | everything else                           | normal, initializer_range                                    |
// A config may say initializer_range 0: then 1 / sqrt(inputs) takes its place (embedding: 0.02).
float init_deviation(const ModelConfig& config, const std::string& name, int64_t inputs) {
  if (ends_with(name, "norm.weight")) return 0;
  float base = float(config.initializer_range);
  if (base == 0) base = name.find("embed_tokens") == std::string::npos ? 1 / std::sqrt(float(inputs)) : 0.02f;
  bool to_residual = ends_with(name, "o_proj.weight") || ends_with(name, "down_proj.weight");
  return to_residual ? base / std::sqrt(2 * float(config.num_hidden_layers)) : base;
}

at::Tensor init_tensor(const ModelConfig& config, const TensorSpec& spec, uint64_t seed) {
  auto tensor = at::zeros(spec.shape, at::TensorOptions().dtype(at::kFloat));
  if (ends_with(spec.name, "norm.weight")) return tensor.fill_(1);
  if (ends_with(spec.name, "weights_proj.bias")) return tensor.fill_(1);
  if (ends_with(spec.name, "bias")) return tensor;
  float deviation = init_deviation(config, spec.name, spec.shape.back());
  RandomStream stream(seed, spec.name);
  float* at = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) at[i] = deviation * stream.normal();
  return tensor;
}

}  // namespace

bool Parameter::decayed() const { return tensor->dim() >= 2 && name.find("embed_tokens") == std::string::npos; }

std::vector<Parameter> parameters(Weights& weights) {
  std::vector<Parameter> out;
  visit_all(weights, [&](const std::string& name, at::Tensor& tensor) {
    for (const auto& other : out)
      if (other.tensor->is_same(tensor)) return;
    out.push_back({name, &tensor});
  });
  return out;
}

Weights init_weights(const ModelConfig& config, uint64_t seed) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& spec : tensor_specs(config)) tensors[spec.name] = init_tensor(config, spec, seed);
  return import_weights(config, tensors, /*share_mtp=*/true);
}

std::map<std::string, at::Tensor> export_weights(const ModelConfig& config, Weights& weights) {
  std::map<std::string, at::Tensor> out;
  visit_all(weights, [&](const std::string& name, at::Tensor& tensor) {
    if (name.find('*') == std::string::npos) {
      out[name] = tensor.detach();
      return;
    }
    for (int64_t e = 0; e < config.n_routed_experts; ++e) out[expert_name(name, e)] = tensor.detach().select(0, e);
  });
  return out;
}

Weights import_weights(const ModelConfig& config, const std::map<std::string, at::Tensor>& tensors, bool share_mtp) {
  check_weights(config, tensors);
  Weights w = empty_weights(config);
  auto fetch = [&](const std::string& name) { return tensors.at(name).to(at::kFloat).contiguous().clone(); };
  visit_all(w, [&](const std::string& name, at::Tensor& tensor) {
    if (name.find('*') == std::string::npos) {
      tensor = fetch(name);
      return;
    }
    std::vector<at::Tensor> experts;
    for (int64_t e = 0; e < config.n_routed_experts; ++e) experts.push_back(fetch(expert_name(name, e)));
    tensor = at::stack(experts);
  });
  if (w.tied) w.lm_head = w.embed_tokens;
  if (share_mtp && w.mtp) w.mtp->embed_tokens = w.embed_tokens, w.mtp->head = w.lm_head;
  return w;
}

namespace {

bool multiplies_f32(const std::string& name) {
  return ends_with(name, "mlp.gate.weight") || ends_with(name, "indexer.weights_proj.weight");
}

// How a matrix is stored where the others are stored as `format`.
WeightFormat format_of(const std::string& name, WeightFormat format) {
  bool head = ends_with(name, "lm_head.weight") || ends_with(name, "shared_head.head.weight");
  if (multiplies_f32(name) || (head && format == WeightFormat::fp8)) return WeightFormat::plain;
  return head && format == WeightFormat::int4 ? WeightFormat::int8 : format;
}

// Packed; plain, in `type`, where the format cannot hold it.
at::Tensor stored(const at::Tensor& masters, at::ScalarType type, WeightFormat format) {
  auto packed = format == WeightFormat::plain ? at::Tensor() : ops::pack(masters, format);
  bool holds = packed.defined() && packed.scalar_type() != masters.scalar_type();
  return holds ? packed : ops::pack(masters.to(type));
}

std::string packing_name(const Packing& packing) {
  return cat(kWeightFormats[int(packing.format)], " weights, ", packing.type == at::kBFloat16 ? "bf16" : "f32", ", ",
             packing.absorbed ? "sparse" : "dense", " attention");
}

void absorb(const ModelConfig& config, AttentionWeights& w, at::ScalarType type, WeightFormat format) {
  int64_t H = config.num_attention_heads, nope = config.qk_nope_head_dim, Dv = config.v_head_dim;
  auto kv_b = w.kv_b_proj.detach();
  if (format == WeightFormat::fp8) {
    if (!kv_b.is_meta()) {
      auto [bytes, scales] = ops::quantize_blocks(kv_b, ops::ScaleRule::pow2);
      kv_b = ops::dequantize_blocks(bytes, scales);
    }
    format = WeightFormat::plain;
  }
  auto kv_b_HER = kv_b.view({H, nope + Dv, config.kv_lora_rank});
  auto k_up = stored(kv_b_HER.narrow(1, 0, nope).transpose(1, 2).contiguous(), type, format);
  auto v_up = stored(kv_b_HER.narrow(1, nope, Dv).contiguous(), type, format);
  bool both = k_up.dim() == 4 && v_up.dim() == 4;  // sizes that cannot be packed stay as they are
  if (both) w.k_up_proj = k_up, w.v_up_proj = v_up, w.kv_b_proj = at::Tensor();
  else w.kv_b_proj = kv_b.to(type);
}

}  // namespace

Weights pack_weights(const ModelConfig& config, Weights weights, at::ScalarType type, bool absorbed, WeightFormat format) {
  Packing packing{type, absorbed, format};
  if (weights.packing) {
    FULGUR_CHECK(*weights.packing == packing, "[model] packed weights: expected to run as they were packed (",
                 packing_name(*weights.packing), "), got ", packing_name(packing));
    return weights;
  }
  if (absorbed && config.has_latents()) {
    for (auto& layer : weights.layers) absorb(config, layer.self_attn, type, format);
    if (weights.mtp) absorb(config, weights.mtp->layer.self_attn, type, format);
  }
  bool one_embedding = weights.mtp && weights.mtp->embed_tokens.is_same(weights.embed_tokens);
  if (weights.mtp && weights.mtp->head.is_same(weights.lm_head)) weights.mtp->head = at::Tensor();
  visit_all(weights, [&](const std::string& name, at::Tensor& tensor) {
    bool stays = name.find("embed_tokens") != std::string::npos || (absorbed && ends_with(name, "kv_b_proj.weight"));
    if (!tensor.defined() || tensor.dim() < 2 || stays) return;
    tensor = stored(tensor.detach(), multiplies_f32(name) ? at::kFloat : type, format_of(name, format));
  });
  if (weights.tied) weights.lm_head = stored(weights.embed_tokens.detach(), type, format_of("lm_head.weight", format));
  if (weights.mtp && !weights.mtp->head.defined()) weights.mtp->head = weights.lm_head;
  weights.embed_tokens = weights.embed_tokens.detach().to(type);
  if (weights.mtp) weights.mtp->embed_tokens = one_embedding ? weights.embed_tokens : weights.mtp->embed_tokens.detach().to(type);
  weights.packing = packing;
  return weights;
}

namespace {

void visit_packed(Weights& w, const Visit& visit) {
  visit_all(w, [&](const std::string& name, at::Tensor& tensor) {
    if (tensor.defined()) visit(name, tensor);
  });
  if (w.tied) visit("lm_head.weight", w.lm_head);
  auto by_head = [&](size_t layer, AttentionWeights& attention) {
    if (!attention.k_up_proj.defined()) return;
    visit(cat("model.layers.", layer, ".self_attn.k_up_proj.weight"), attention.k_up_proj);
    visit(cat("model.layers.", layer, ".self_attn.v_up_proj.weight"), attention.v_up_proj);
  };
  for (size_t i = 0; i < w.layers.size(); ++i) by_head(i, w.layers[i].self_attn);
  if (w.mtp) by_head(w.layers.size(), w.mtp->layer.self_attn);
}

// What packing makes of a model, without the bytes.
Weights packed_shapes(const ModelConfig& config, const Packing& packing) {
  std::map<std::string, at::Tensor> masters;
  for (const auto& [name, shape] : tensor_specs(config))
    masters[name] = at::empty(shape, at::TensorOptions().dtype(at::kFloat).device(at::kMeta));
  return pack_weights(config, import_weights(config, masters, /*share_mtp=*/true), packing.type, packing.absorbed,
                      packing.format);
}

}  // namespace

int64_t packed_bytes(const ModelConfig& config, const Packing& packing) {
  Weights weights = packed_shapes(config, packing);
  int64_t bytes = 0;
  for (const auto& [name, tensor] : export_packed(weights)) bytes += int64_t(tensor.nbytes());
  return bytes;
}

std::map<std::string, at::Tensor> export_packed(Weights& weights) {
  std::map<std::string, at::Tensor> out;
  std::set<const void*> seen;
  visit_packed(weights, [&](const std::string& name, at::Tensor& tensor) {
    if (seen.insert(tensor.unsafeGetTensorImpl()).second) out[name] = tensor;
  });
  return out;
}

Weights import_packed(const ModelConfig& config, const Packing& packing, const std::map<std::string, at::Tensor>& tensors) {
  Weights w = packed_shapes(config, packing);
  std::map<at::TensorImpl*, std::pair<at::Tensor, at::Tensor>> found;  // each expected one, kept so that no other has its place
  visit_packed(w, [&](const std::string& name, at::Tensor& tensor) {
    auto [at, fresh] = found.try_emplace(tensor.unsafeGetTensorImpl(), tensor, at::Tensor());
    if (fresh) {
      auto given = tensors.find(name);
      FULGUR_CHECK(given != tensors.end(), "[weights] packed tensor ", name, ": expected ", tensor.sizes(), ", got none");
      FULGUR_CHECK(given->second.sizes() == tensor.sizes() && given->second.scalar_type() == tensor.scalar_type(),
                   "[weights] packed tensor ", name, ": expected ", tensor.sizes(), " of ", tensor.scalar_type(), ", got ",
                   given->second.sizes(), " of ", given->second.scalar_type());
      at->second.second = given->second;
    }
    tensor = at->second.second;
  });
  FULGUR_CHECK(found.size() == tensors.size(), "[weights] expected ", found.size(), " packed tensors, got ", tensors.size());
  return w;
}

}  // namespace fulgur
