// Attention of one layer: DeepSeek's (MLA, expanded or absorbed) and grouped-query; and the indexer that chooses its keys.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/model/pass.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/norm/norm.h"
#include "fulgur/ops/quantize/quantize.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"
#include "fulgur/ops/visible.h"

namespace fulgur {
namespace {

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

}  // namespace

at::Tensor Transformer::attention(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, Pass& pass) const {
  if (pass.options.best_keys) pass.best_NK = best_choice(layer, x_ND, index, pass);
  const AttentionWeights& w = layer.self_attn;
  if (w.grouped) return grouped_attention(w, x_ND, index, pass);
  auto latent_NL = ops::rms_norm(ops::linear(x_ND, w.q_a_proj), w.q_a_layernorm, config_.rms_norm_eps);
  return pass.options.attention == Attention::sparse ? sparse_attention(w, x_ND, latent_NL, index, pass)
                                                     : dense_attention(w, x_ND, latent_NL, index, pass);
}

// The keys of most attention averaged over heads, as dense attention would spread it from the same input.
at::Tensor Transformer::best_choice(const LayerWeights& layer, const at::Tensor& x_ND, int64_t index, const Pass& pass) const {
  constexpr int64_t kRows = 128;  // [H, rows, S] lives for a moment
  std::vector<at::Tensor> chosen;
  std::function<void(int64_t, const DenseAttention&)> watch = [&](int64_t, const DenseAttention& seen) {
    for (int64_t row = 0, N = x_ND.size(0); row < N; row += kRows) {
      auto rows = at::arange(row, std::min(row + kRows, N));
      auto visible = pass.batch.visible_N2.index_select(0, rows);
      FULGUR_CHECK(!visible.select(1, 0).any().item<bool>(),
                   "[model] expected one document to choose the best keys of, got more");
      chosen.push_back(ops::top_k(mean_attention(seen, pass.batch, rows), visible.select(1, 1), config_.index_topk));
    }
  };
  ForwardOptions dense{.attention = Attention::dense, .type = pass.options.type, .watch = &watch};
  Pass beside{pass.batch, dense, nullptr, nullptr, pass.rotation};
  attention(layer, x_ND, index, beside);
  return at::cat(chosen);
}

//   q_NJD k_ND: [rope | nope], rotated by halves; w_NJ holds J^-0.5 * Di^-0.5.    Spec C, steps 1-8.
// Tied keys are the attention's own: of groups k_NGD, beside latents [c | k_rope], whose queries turn as absorbed attention's.
struct Transformer::IndexerInputs {
  at::Tensor q_NJD, k_ND, w_NJ;
};

namespace {

at::Tensor index_queries(const ModelConfig& c, const IndexerWeights& w, const at::Tensor& latent_NL,
                         const ops::Rotation& rotation) {
  auto q_NJD = ops::linear(latent_NL.detach(), w.wq_b).view({-1, c.index_n_heads, c.index_head_dim});
  if (w.tied && c.has_latents()) return ops::rope(q_NJD, rotation, c.kv_lora_rank, ops::Pairing::adjacent);
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

// Their inputs are detached, so that the indexer's loss stays its own. `tied_ND`: the keys of tied ones.
Transformer::IndexerInputs Transformer::indexer_inputs(const IndexerWeights& w, const at::Tensor& x_ND,
                                                       const at::Tensor& latent_NL, const Pass& pass,
                                                       const at::Tensor& tied_ND) const {
  auto q_NJD = index_queries(config_, w, latent_NL, pass.rotation), w_NJ = index_weights(config_, w, x_ND);
  if (w.tied) return {q_NJD, tied_ND.detach(), w_NJ};
  auto k_ND = index_keys(config_, w, x_ND, pass.rotation);
  if (pass.options.hadamard) q_NJD = ops::hadamard(q_NJD), k_ND = ops::hadamard(k_ND);
  if (pass.options.simulate_fp8) q_NJD = ops::simulate_fp8(q_NJD), k_ND = ops::simulate_fp8(k_ND);
  return {q_NJD, k_ND, w_NJ};
}

Transformer::IndexerInputs Transformer::indexer_beside(int64_t layer, const DenseAttention& seen, const Batch& batch,
                                                       const at::Tensor& rows) const {
  bool mtp = layer == int64_t(weights_.layers.size());
  const IndexerWeights& w = (mtp ? weights_.mtp.value().layer : weights_.layers.at(layer)).self_attn.indexer.value();
  auto some = [&](const at::Tensor& x) { return x.index_select(0, rows); };
  auto rotation = ops::rotation(some(batch.positions_N), frequencies_);
  auto keys = w.tied ? seen.tied_SD.detach() : index_keys(config_, w, seen.x_ND, ops::rotation(batch.positions_N, frequencies_));
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

// The keys each row attends to: the indexer's choice among `index_SD`, all keys of the call; or a recorded one, or the best.
at::Tensor Transformer::select_keys(const IndexerInputs& indexer, const at::Tensor& index_SD, int64_t index, Pass& pass) const {
  const auto& batch = pass.batch;
  const at::Tensor* replayed = forced(pass.options, &Replay::selected_NK, index);
  auto selected_NK = replayed                 ? *replayed
                     : pass.best_NK.defined() ? pass.best_NK
                                              : ops::indexer_top_k(indexer.q_NJD, index_SD, indexer.w_NJ, batch.visible_N2,
                                                                   config_.index_topk, batch.pages_P);
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

bool Transformer::wants_comparison(const AttentionWeights& w, const Pass& pass) {
  bool wants_kl = pass.losses && pass.options.indexer_kl;
  FULGUR_CHECK(w.indexer || !wants_kl, "[model] expected an indexer for its KL, got none");
  return w.indexer && (wants_kl || pass.options.trace);
}

// The indexer beside the dense attention that it is to imitate: its KL, and what a trace shows of both.
void Transformer::compare_to_dense(const IndexerInputs& indexer, const at::Tensor& q_NHE, const at::Tensor& k_SHE,
                                   const at::Tensor& lse_NH, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation, best_NK] = pass;
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

// Attention to the keys the indexer chooses, its own kept for later rows, and its KL: q over [values | rest] of each key, H x
// values.
at::Tensor Transformer::attend_chosen(const AttentionWeights& w, const IndexerInputs& indexer, const at::Tensor& q_NHC,
                                      const at::Tensor& kv_SC, int64_t values, int64_t index, Pass& pass) const {
  const auto& batch = pass.batch;
  auto* cached = pass.layer_cache(index);
  if (cached && !w.indexer->tied) ops::store_index_keys(cached->index_PDK, batch.slots_N, indexer.k_ND);
  auto index_SD = cached ? cached->index_keys(config_) : indexer.k_ND;
  auto selected_NK = select_keys(indexer, index_SD, index, pass);
  auto [out_NHV, lse_NH, target_NK] = ops::sparse_mla(q_NHC, kv_SC, selected_NK, values, softmax_scale_, batch.pages_P);
  if (pass.losses && pass.options.indexer_kl)
    pass.losses->back().kl_N = ops::indexer_kl_sparse(indexer.q_NJD, index_SD, indexer.w_NJ, selected_NK, target_NK);
  return out_NHV;
}

// Absorbed (MQA) form over the selected keys: q = [UK^T q_nope | q_rope], keys [c | k_rope], values c.   Spec B.
at::Tensor Transformer::sparse_attention(const AttentionWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL,
                                         int64_t index, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation, best_NK] = pass;
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
  auto own_NC = cached && !w.indexer->tied ? at::Tensor() : at::cat({c_NR, k_rope_NP}, 1);
  auto kv_SC = cached ? cached->kv_SC : own_NC;

  auto indexer = indexer_inputs(*w.indexer, x_ND, latent_NL, pass, own_NC);
  auto out_NHR = attend_chosen(w, indexer, q_NHC, kv_SC, R, index, pass);
  return ops::linear(ops::head_linear(out_NHR, v_up).flatten(1), w.o_proj);
}

// MHA form over all visible keys; with a cache the expanded keys and values are what is kept.   Spec B.
at::Tensor Transformer::dense_attention(const AttentionWeights& w, const at::Tensor& x_ND, const at::Tensor& latent_NL,
                                        int64_t index, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation, best_NK] = pass;
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

  bool compares = wants_comparison(w, pass);
  auto tied_ND = compares || options.watch ? at::cat({c_NR, k_rope_N1P.squeeze(1)}, 1) : at::Tensor();
  if (compares) compare_to_dense(indexer_inputs(*w.indexer, x_ND, latent_NL, pass, tied_ND), q_NHE, k_SHE, lse_NH, pass);
  if (options.watch) (*options.watch)(index, {x_ND, latent_NL, q_NHE, k_SHE, lse_NH, tied_ND});
  return ops::linear(out_NHV.flatten(1), w.o_proj);
}

// Groups of heads share a head of keys and values, as in Llama. Rotated by halves, as Hugging Face has it. Sparse: all heads of a
// token see the keys that its indexer chose, each group its own numbers of them.
at::Tensor Transformer::grouped_attention(const AttentionWeights& w, const at::Tensor& x_ND, int64_t index, Pass& pass) const {
  const auto& [batch, options, cache, losses, rotation, best_NK] = pass;
  int64_t E = config_.v_head_dim;
  auto heads = [&](const at::Tensor& weight) { return ops::linear(x_ND, weight).view({x_ND.size(0), -1, E}); };
  auto q_NHE = ops::rope(heads(w.grouped->q_proj), rotation, 0, ops::Pairing::halves);
  auto k_NGE = ops::rope(heads(w.grouped->k_proj), rotation, 0, ops::Pairing::halves);
  auto v_NGE = heads(w.grouped->v_proj);
  auto* cached = pass.layer_cache(index);
  if (options.attention == Attention::sparse) {
    auto kv_SGC = with_cached(cached ? &cached->kv_SC : nullptr, batch, at::cat({v_NGE, k_NGE}, 2));
    auto indexer = indexer_inputs(*w.indexer, x_ND, x_ND, pass, k_NGE);
    return ops::linear(attend_chosen(w, indexer, q_NHE, kv_SGC, E, index, pass).flatten(1), w.o_proj);
  }
  auto k_SGE = with_cached(cached ? &cached->k_SHE : nullptr, batch, k_NGE);
  auto v_SGE = with_cached(cached ? &cached->v_SHV : nullptr, batch, v_NGE);
  auto [out_NHE, lse_NH] = ops::dense_mla(q_NHE, k_SGE, v_SGE, batch.visible_N2, softmax_scale_, batch.pages_P);
  if (wants_comparison(w, pass))
    compare_to_dense(indexer_inputs(*w.indexer, x_ND, x_ND, pass, k_NGE), q_NHE, k_SGE, lse_NH, pass);
  if (options.watch) (*options.watch)(index, {x_ND, x_ND, q_NHE, k_SGE, lse_NH, k_SGE});
  return ops::linear(out_NHE.flatten(1), w.o_proj);
}

}  // namespace fulgur
