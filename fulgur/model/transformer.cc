#include "fulgur/model/transformer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/where.h>

#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/model/expert_pager.h"
#include "fulgur/model/rope_table.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/embedding/embedding.h"
#include "fulgur/ops/experts/experts.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/norm/norm.h"
#include "fulgur/ops/quantize/quantize.h"
#include "fulgur/ops/router/router.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"
#include "fulgur/ops/visible.h"

namespace fulgur {
namespace {

const at::Tensor* forced(const ForwardOptions& options, std::vector<at::Tensor> Replay::*choices, int64_t index) {
  if (!options.replay) return nullptr;
  const auto& all = options.replay->*choices;
  return index < int64_t(all.size()) && all[index].defined() ? &all[index] : nullptr;
}

// New keys go into their slots of the cache; every key comes back.
at::Tensor with_cached(at::Tensor* cached, const Batch& batch, const at::Tensor& rows) {
  if (!cached) return rows;
  cached->index_copy_(0, batch.slots_N, rows.detach());
  return *cached;
}

// Keys of a call, numbered from the first that each row sees, which is its text's first.
at::Tensor from_first(const at::Tensor& selected_NK, const at::Tensor& visible_N2) {
  return at::where(selected_NK < 0, selected_NK, selected_NK - visible_N2.narrow(1, 0, 1));
}

// The token of the row behind; the last has none.
at::Tensor following(const Batch& batch) {
  auto next_N = batch.tokens_N.roll(-1);
  if (int64_t N = next_N.size(0); N > 0) next_N[N - 1] = -1;
  return next_N;
}

at::Tensor route(const ModelConfig& c, const MoeWeights& w, const at::Tensor& logits_NX) {
  return ops::route(logits_NX, w.e_score_correction_bias, {c.n_group, c.topk_group, c.num_experts_per_tok});
}

at::Tensor mlp(const MlpWeights& w, const at::Tensor& x_ND) {
  return ops::linear(ops::swiglu(ops::linear(x_ND, w.gate_proj), ops::linear(x_ND, w.up_proj)), w.down_proj);
}

}  // namespace

struct Transformer::Pass {
  const Batch& batch;
  const ForwardOptions& options;
  Cache* cache = nullptr;
  std::vector<LayerLosses>* losses = nullptr;
  ops::Rotation rotation;

  LayerTrace* trace() const { return options.trace ? &options.trace->back() : nullptr; }
  Cache::Layer* layer_cache(int64_t index) const { return cache ? &cache->layers.at(index) : nullptr; }
};

Transformer::Transformer(ModelConfig config, Weights weights)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      frequencies_(rope_frequencies(config_)),
      softmax_scale_(fulgur::softmax_scale(config_)) {}

void Transformer::page_experts() { pager_ = std::make_shared<ExpertPager>(weights_); }

at::Tensor Transformer::forward(const Batch& batch, const ForwardOptions& options, Cache* cache,
                                std::vector<LayerLosses>* losses) const {
  FULGUR_CHECK(options.attention == Attention::dense || config_.has_indexer(),
               "[model] expected a model with an indexer for sparse attention, got one of ", config_.model_type,
               "\n  hint: --attention dense, or add an indexer with `fulgur train warmup`");
  Pass pass{batch, options, cache, losses, ops::rotation(batch.positions_N, frequencies_)};
  at::Tensor x_ND = ops::embedding(weights_.embed_tokens, batch.tokens_N, options.type), residual_ND;
  for (size_t i = 0; i < weights_.layers.size(); ++i)
    std::tie(x_ND, residual_ND) = decoder_layer(weights_.layers[i], x_ND, residual_ND, int64_t(i), pass);
  return ops::add_rms_norm(x_ND, residual_ND, weights_.norm, config_.rms_norm_eps).first;
}

at::Tensor Transformer::forward_mtp(const Batch& batch, const at::Tensor& hidden_ND, const ForwardOptions& options, Cache* cache,
                                    std::vector<LayerLosses>* losses) const {
  FULGUR_CHECK(weights_.mtp, "[model] expected a model with a multi-token-prediction layer, got none");
  const MtpWeights& w = *weights_.mtp;
  Pass pass{batch, options, cache, losses, ops::rotation(batch.positions_N, frequencies_)};
  auto next_N = (batch.next_N.defined() ? batch.next_N : following(batch)).masked_fill(batch.positions_N == 0, -1);
  auto embedded_ND = ops::rms_norm(ops::embedding(w.embed_tokens, next_N, options.type), w.enorm, config_.rms_norm_eps);
  auto joined_N2D = at::cat({embedded_ND, ops::rms_norm(hidden_ND, w.hnorm, config_.rms_norm_eps)}, 1);
  auto [x_ND, residual_ND] =
      decoder_layer(w.layer, ops::linear(joined_N2D, w.eh_proj), {}, int64_t(weights_.layers.size()), pass);
  return ops::add_rms_norm(x_ND, residual_ND, w.norm, config_.rms_norm_eps).first;
}

std::pair<at::Tensor, at::Tensor> Transformer::decoder_layer(const LayerWeights& layer, const at::Tensor& x_ND,
                                                             const at::Tensor& residual_ND, int64_t index, Pass& pass) const {
  if (pass.options.trace) pass.options.trace->emplace_back();
  if (pass.losses) pass.losses->emplace_back();
  at::Tensor normed_ND, stream_ND;
  if (residual_ND.defined()) {
    std::tie(normed_ND, stream_ND) = ops::add_rms_norm(x_ND, residual_ND, layer.input_layernorm, config_.rms_norm_eps);
  } else {
    normed_ND = ops::rms_norm(x_ND, layer.input_layernorm, config_.rms_norm_eps);
    stream_ND = x_ND;
  }
  auto attended_ND = attention(layer, normed_ND, index, pass);
  auto [second_ND, after_ND] = ops::add_rms_norm(attended_ND, stream_ND, layer.post_attention_layernorm, config_.rms_norm_eps);
  if (pager_) expect_experts(index + 1, after_ND);
  auto out_ND = feed_forward(layer, second_ND, index, pass);
  if (auto* trace = pass.trace()) {
    trace->attn_out_ND = attended_ND;
    trace->hidden_ND = after_ND + out_ND;
  }
  return {out_ND, after_ND};
}

at::Tensor Transformer::attention(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, Pass& pass) const {
  const AttentionWeights& w = layer.self_attn;
  if (w.grouped) return grouped_attention(w, x_ND, index, pass);
  auto latent_NL = ops::rms_norm(ops::linear(x_ND, w.q_a_proj), w.q_a_layernorm, config_.rms_norm_eps);
  return pass.options.attention == Attention::sparse ? sparse_attention(w, x_ND, latent_NL, index, pass)
                                                     : dense_attention(w, x_ND, latent_NL, index, pass);
}

//   q_NJD k_ND: [rope | nope], rotated by halves; w_NJ holds J^-0.5 * Di^-0.5.    Spec C, steps 1-8.
// Tied keys are the attention's own, in groups: k_NGD.
struct Transformer::IndexerInputs {
  at::Tensor q_NJD, k_ND, w_NJ;
};

namespace {

at::Tensor index_queries(const ModelConfig& c, const IndexerWeights& w, const at::Tensor& latent_NL,
                         const ops::Rotation& rotation) {
  auto q_NJD = ops::linear(latent_NL.detach(), w.wq_b).view({-1, c.index_n_heads, c.index_head_dim});
  return ops::rope(q_NJD, rotation, 0, ops::Pairing::halves);
}

at::Tensor index_keys(const ModelConfig& c, const IndexerWeights& w, const at::Tensor& x_ND, const ops::Rotation& rotation) {
  auto k_N1D = ops::layer_norm(ops::linear(x_ND.detach(), w.wk), w.k_norm, w.k_norm_bias, 1e-6).view({-1, 1, c.index_head_dim});
  return ops::rope(k_N1D, rotation, 0, ops::Pairing::halves).squeeze(1);
}

at::Tensor index_weights(const ModelConfig& c, const IndexerWeights& w, const at::Tensor& x_ND) {
  auto w_NJ = ops::linear(x_ND.detach().to(at::kFloat), w.weights_proj);
  if (w.tied) w_NJ = w_NJ + w.weights_bias;
  return w_NJ * (1 / std::sqrt(double(c.index_n_heads) * double(c.index_head_dim)));
}

}  // namespace

// Their inputs are detached, so that the indexer's loss stays its own. `tied_NGE`: the attention's keys.
Transformer::IndexerInputs Transformer::indexer_inputs(const IndexerWeights& w, const at::Tensor& x_ND,
                                                       const at::Tensor& latent_NL, const Pass& pass,
                                                       const at::Tensor& tied_NGE) const {
  auto q_NJD = index_queries(config_, w, latent_NL, pass.rotation), w_NJ = index_weights(config_, w, x_ND);
  if (w.tied) return {q_NJD, tied_NGE.detach(), w_NJ};
  auto k_ND = index_keys(config_, w, x_ND, pass.rotation);
  if (pass.options.hadamard) q_NJD = ops::hadamard(q_NJD), k_ND = ops::hadamard(k_ND);
  if (pass.options.simulate_fp8) q_NJD = ops::simulate_fp8(q_NJD), k_ND = ops::simulate_fp8(k_ND);
  return {q_NJD, k_ND, w_NJ};
}

Transformer::IndexerInputs Transformer::indexer_beside(int64_t layer, const DenseAttention& seen, const Batch& batch,
                                                       const at::Tensor& rows) const {
  const IndexerWeights& w = weights_.layers.at(layer).self_attn.indexer.value();
  auto some = [&](const at::Tensor& x) { return x.index_select(0, rows); };
  auto rotation = ops::rotation(some(batch.positions_N), frequencies_);
  auto keys = w.tied ? seen.k_SHE.detach() : index_keys(config_, w, seen.x_ND, ops::rotation(batch.positions_N, frequencies_));
  return {index_queries(config_, w, some(seen.latent_NL), rotation), keys, index_weights(config_, w, some(seen.x_ND))};
}

at::Tensor Transformer::indexer_kl(int64_t layer, const DenseAttention& seen, const Batch& batch, const at::Tensor& rows) const {
  auto indexer = indexer_beside(layer, seen, batch, rows);
  return ops::indexer_kl_dense(indexer.q_NJD, indexer.k_ND, indexer.w_NJ, seen.q_NHE.detach().index_select(0, rows),
                               seen.k_SHE.detach(), seen.lse_NH.index_select(0, rows), batch.visible_N2.index_select(0, rows),
                               softmax_scale_);
}

at::Tensor Transformer::indexer_choice(int64_t layer, const DenseAttention& seen, const Batch& batch, const at::Tensor& rows,
                                       int64_t k) const {
  auto indexer = indexer_beside(layer, seen, batch, rows);
  return ops::indexer_top_k(indexer.q_NJD, indexer.k_ND, indexer.w_NJ, batch.visible_N2.index_select(0, rows), k);
}

// The keys each row attends to: the indexer's choice among `index_SD`, all keys of the call, or a recorded one.
at::Tensor Transformer::select_keys(const IndexerInputs& indexer, const at::Tensor& index_SD, int64_t index, Pass& pass) const {
  const auto& batch = pass.batch;
  const at::Tensor* replayed = forced(pass.options, &Replay::selected_NK, index);
  auto selected_NK =
      replayed ? *replayed
               : ops::indexer_top_k(indexer.q_NJD, index_SD, indexer.w_NJ, batch.visible_N2, config_.index_topk, batch.pages_P);
  if (auto* cached = pass.layer_cache(index); cached && cached->selected_SK.defined())
    cached->selected_SK.index_copy_(0, batch.slots_N, from_first(selected_NK, batch.visible_N2));
  if (auto* trace = pass.trace()) {
    trace->selected_NK = selected_NK;
    if (pass.options.trace_scores)
      trace->indexer_scores_NS = ops::indexer_scores(indexer.q_NJD, index_SD, indexer.w_NJ, batch.visible_N2, batch.pages_P);
  }
  return selected_NK;
}

namespace {

// Attention averaged over heads, [N, S]; for probes and plots.
at::Tensor mean_over_heads(const at::Tensor& q_NHE, const at::Tensor& k_SHE, const at::Tensor& lse_NH,
                           const at::Tensor& visible_N2, double scale) {
  auto keys_SHE = k_SHE.repeat_interleave(q_NHE.size(1) / k_SHE.size(1), 1);
  auto scores_HNS = at::matmul(q_NHE.to(at::kFloat).transpose(0, 1), keys_SHE.to(at::kFloat).permute({1, 2, 0})) * scale;
  auto p_HNS = (scores_HNS - lse_NH.transpose(0, 1).unsqueeze(2)).exp();
  return (p_HNS.mean(0) * ops::visible_mask(visible_N2, k_SHE.size(0))).contiguous();
}

}  // namespace

at::Tensor Transformer::mean_attention(const DenseAttention& seen, const Batch& batch, const at::Tensor& rows) const {
  auto some = [&](const at::Tensor& x) { return x.index_select(0, rows); };
  return mean_over_heads(some(seen.q_NHE), seen.k_SHE, some(seen.lse_NH), some(batch.visible_N2), softmax_scale_);
}

// The indexer beside the dense attention that it is to imitate: its KL, and what a trace shows of both.
void Transformer::compare_to_dense(const IndexerInputs& indexer, const at::Tensor& q_NHE, const at::Tensor& k_SHE,
                                   const at::Tensor& lse_NH, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation] = pass;
  FULGUR_CHECK(!cache, "[model] expected no cache beside an indexer's KL or its trace, got one");
  if (losses && options.indexer_kl)
    losses->back().kl_N = ops::indexer_kl_dense(indexer.q_NJD, indexer.k_ND, indexer.w_NJ, q_NHE.detach(), k_SHE.detach(), lse_NH,
                                                batch.visible_N2, softmax_scale_);
  if (!options.trace || !options.trace_scores) return;
  auto& trace = *pass.trace();
  trace.indexer_scores_NS = ops::indexer_scores(indexer.q_NJD, indexer.k_ND, indexer.w_NJ, batch.visible_N2);
  trace.index_q_NJD = indexer.q_NJD, trace.index_k_ND = indexer.k_ND, trace.index_w_NJ = indexer.w_NJ;
  trace.attention_NS = mean_over_heads(q_NHE, k_SHE, lse_NH, batch.visible_N2, softmax_scale_);
}

namespace {

// The absorbed form's weights by head: up to latent queries and down to values, [H, nope, R] and [H, R, Dv], or packed.
std::pair<at::Tensor, at::Tensor> by_head(const ModelConfig& config, const AttentionWeights& w) {
  if (w.k_up_proj.defined()) return {w.k_up_proj, w.v_up_proj};
  int64_t nope = config.qk_nope_head_dim, Dv = config.v_head_dim;
  auto kv_b_HER = w.kv_b_proj.view({config.num_attention_heads, nope + Dv, config.kv_lora_rank});
  return {kv_b_HER.narrow(1, 0, nope), kv_b_HER.narrow(1, nope, Dv).transpose(1, 2)};
}

}  // namespace

// Absorbed (MQA) form over the selected keys: q = [UK^T q_nope | q_rope], keys [c | k_rope], values c.   Spec B.
at::Tensor Transformer::sparse_attention(const AttentionWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL,
                                         int64_t index, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation] = pass;
  int64_t H = config_.num_attention_heads, nope = config_.qk_nope_head_dim, R = config_.kv_lora_rank;
  auto [k_up, v_up] = by_head(config_, w);
  auto q_NHE = ops::linear(latent_NL, w.q_b_proj).view({-1, H, nope + config_.qk_rope_head_dim});
  q_NHE = ops::rope(q_NHE, rotation, nope, ops::Pairing::adjacent);
  auto q_parts = q_NHE.split_with_sizes({nope, config_.qk_rope_head_dim}, 2);
  auto q_NHC = at::cat({ops::head_linear(q_parts[0], k_up), q_parts[1]}, 2);

  auto kv_parts = ops::linear(x_ND, w.kv_a_proj_with_mqa).split_with_sizes({R, config_.qk_rope_head_dim}, 1);
  auto c_NR = ops::rms_norm(kv_parts[0], w.kv_a_layernorm, config_.rms_norm_eps);
  if (options.simulate_fp8) c_NR = ops::simulate_fp8(c_NR);
  auto k_rope_NP = ops::rope(kv_parts[1].unsqueeze(1), rotation, 0, ops::Pairing::adjacent).squeeze(1);
  auto* cached = pass.layer_cache(index);
  if (cached) ops::store_latents(cached->kv_SC, batch.slots_N, c_NR, k_rope_NP);
  auto kv_SC = cached ? cached->kv_SC : at::cat({c_NR, k_rope_NP}, 1);

  auto indexer = indexer_inputs(*w.indexer, x_ND, latent_NL, pass);
  if (cached) ops::store_index_keys(cached->index_PDK, batch.slots_N, indexer.k_ND);
  auto index_SD = cached ? cached->index_PDK : indexer.k_ND;
  auto selected_NK = select_keys(indexer, index_SD, index, pass);
  auto [out_NHR, lse_NH, target_NK] = ops::sparse_mla(q_NHC, kv_SC, selected_NK, R, softmax_scale_, batch.pages_P);
  if (losses && options.indexer_kl)
    losses->back().kl_N = ops::indexer_kl_sparse(indexer.q_NJD, index_SD, indexer.w_NJ, selected_NK, target_NK);
  return ops::linear(ops::head_linear(out_NHR, v_up).flatten(1), w.o_proj);
}

// MHA form over all visible keys; with a cache the expanded keys and values are what is kept.   Spec B.
at::Tensor Transformer::dense_attention(const AttentionWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL,
                                        int64_t index, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation] = pass;
  int64_t H = config_.num_attention_heads, nope = config_.qk_nope_head_dim, P = config_.qk_rope_head_dim;
  int64_t R = config_.kv_lora_rank;
  auto q_NHE = ops::linear(latent_NL, w.q_b_proj).view({-1, H, nope + P});
  q_NHE = ops::rope(q_NHE, rotation, nope, ops::Pairing::adjacent);
  auto kv_parts = ops::linear(x_ND, w.kv_a_proj_with_mqa).split_with_sizes({R, P}, 1);
  auto c_NR = ops::rms_norm(kv_parts[0], w.kv_a_layernorm, config_.rms_norm_eps);
  if (options.simulate_fp8) c_NR = ops::simulate_fp8(c_NR);
  auto k_rope_N1P = ops::rope(kv_parts[1].unsqueeze(1), rotation, 0, ops::Pairing::adjacent);
  auto expanded = ops::linear(c_NR, w.kv_b_proj).view({-1, H, nope + config_.v_head_dim});
  auto expanded_parts = expanded.split_with_sizes({nope, config_.v_head_dim}, 2);
  auto* cached = pass.layer_cache(index);
  auto k_SHE =
      with_cached(cached ? &cached->k_SHE : nullptr, batch, at::cat({expanded_parts[0], k_rope_N1P.expand({-1, H, P})}, 2));
  auto v_SHV = with_cached(cached ? &cached->v_SHV : nullptr, batch, expanded_parts[1].contiguous());
  auto [out_NHV, lse_NH] = ops::dense_mla(q_NHE, k_SHE, v_SHV, batch.visible_N2, softmax_scale_, batch.pages_P);

  bool wants_kl = losses && options.indexer_kl;
  FULGUR_CHECK(w.indexer || !wants_kl, "[model] expected an indexer for its KL, got none");
  if (w.indexer && (wants_kl || options.trace))
    compare_to_dense(indexer_inputs(*w.indexer, x_ND, latent_NL, pass), q_NHE, k_SHE, lse_NH, pass);
  if (options.watch) (*options.watch)(index, {x_ND, latent_NL, q_NHE, k_SHE, lse_NH});
  return ops::linear(out_NHV.flatten(1), w.o_proj);
}

// Groups of heads share a head of keys and values, as in Llama. Rotated by halves, as Hugging Face has it. Sparse: all heads of a
// token see the keys that its indexer chose, each group its own numbers of them.
at::Tensor Transformer::grouped_attention(const AttentionWeights& w, const at::Tensor& x_ND, int64_t index, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation] = pass;
  int64_t E = config_.v_head_dim;
  auto heads = [&](const at::Tensor& weight) { return ops::linear(x_ND, weight).view({x_ND.size(0), -1, E}); };
  auto q_NHE = ops::rope(heads(w.grouped->q_proj), rotation, 0, ops::Pairing::halves);
  auto k_NGE = ops::rope(heads(w.grouped->k_proj), rotation, 0, ops::Pairing::halves);
  auto v_NGE = heads(w.grouped->v_proj);
  auto* cached = pass.layer_cache(index);
  if (options.attention == Attention::sparse) {
    auto kv_SGC = with_cached(cached ? &cached->kv_SC : nullptr, batch, at::cat({v_NGE, k_NGE}, 2));
    auto indexer = indexer_inputs(*w.indexer, x_ND, x_ND, pass, k_NGE);
    if (cached) ops::store_index_keys(cached->index_PDK, batch.slots_N, indexer.k_ND.flatten(1));
    auto index_SD = cached ? cached->index_PDK : indexer.k_ND;
    auto selected_NK = select_keys(indexer, index_SD, index, pass);
    auto [out_NHE, lse_NH, target_NK] = ops::sparse_mla(q_NHE, kv_SGC, selected_NK, E, softmax_scale_, batch.pages_P);
    if (losses && options.indexer_kl)
      losses->back().kl_N = ops::indexer_kl_sparse(indexer.q_NJD, index_SD, indexer.w_NJ, selected_NK, target_NK);
    return ops::linear(out_NHE.flatten(1), w.o_proj);
  }
  auto k_SGE = with_cached(cached ? &cached->k_SHE : nullptr, batch, k_NGE);
  auto v_SGE = with_cached(cached ? &cached->v_SHV : nullptr, batch, v_NGE);
  auto [out_NHE, lse_NH] = ops::dense_mla(q_NHE, k_SGE, v_SGE, batch.visible_N2, softmax_scale_, batch.pages_P);
  if (w.indexer && ((losses && options.indexer_kl) || options.trace))
    compare_to_dense(indexer_inputs(*w.indexer, x_ND, x_ND, pass, k_NGE), q_NHE, k_SGE, lse_NH, pass);
  if (options.watch) (*options.watch)(index, {x_ND, x_ND, q_NHE, k_SGE, lse_NH});
  return ops::linear(out_NHE.flatten(1), w.o_proj);
}

// A layer adds little to the stream: the next one's router would choose much the same of the stream as it is before.
void Transformer::expect_experts(int64_t index, const at::Tensor& stream_ND) const {
  if (index >= int64_t(weights_.layers.size()) || !weights_.layers[index].moe) return;
  const auto& next = weights_.layers[index];
  auto x_ND = ops::rms_norm(stream_ND, next.post_attention_layernorm, config_.rms_norm_eps);
  pager_->expect(index, route(config_, *next.moe, ops::linear(x_ND.to(at::kFloat), next.moe->gate)));
}

at::Tensor Transformer::feed_forward(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, Pass& pass) const {
  if (layer.dense) return mlp(*layer.dense, x_ND);
  const MoeWeights& w = *layer.moe;
  auto logits_NX = ops::linear(x_ND.to(at::kFloat), w.gate);
  const at::Tensor* replayed = forced(pass.options, &Replay::experts_Nk, index);
  auto experts_Nk = replayed ? *replayed : route(config_, w, logits_NX);
  if (pager_) pager_->need(index, experts_Nk);
  if (auto* cached = pass.layer_cache(index); cached && cached->experts_Sk.defined())
    cached->experts_Sk.index_copy_(0, pass.batch.slots_N, experts_Nk);
  auto weights_Nk = ops::route_weights(logits_NX, experts_Nk, config_.norm_topk_prob, config_.routed_scaling_factor);
  if (pass.losses) {
    auto& losses = pass.losses->back();
    losses.experts_Nk = experts_Nk;
    if (pass.options.balance_starts.defined())
      losses.balance = ops::balance_loss(logits_NX, experts_Nk, pass.options.balance_starts);
  }
  if (auto* trace = pass.trace()) trace->experts_Nk = experts_Nk, trace->expert_weights_Nk = weights_Nk;
  return ops::experts(x_ND, experts_Nk, weights_Nk, w.gate_proj, w.up_proj, w.down_proj, mlp(w.shared_experts, x_ND));
}

}  // namespace fulgur
