#include "fulgur/model/transformer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include "fulgur/base/error.h"
#include "fulgur/model/expert_pager.h"
#include "fulgur/model/pass.h"
#include "fulgur/model/rope_table.h"
#include "fulgur/ops/embedding/embedding.h"
#include "fulgur/ops/experts/experts.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/norm/norm.h"
#include "fulgur/ops/router/router.h"

namespace fulgur {
namespace {

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
