// One attention layer of the published size (hidden 7168, 128 heads, 64 index heads, k 2048) over 4,096 tokens, its
// last 64 rows against the references. Needs about 3 GB and a minute.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "fulgur/model/rope_table.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/norm/norm.h"
#include "fulgur/ops/rope/rope.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"

namespace fulgur {
namespace {

constexpr int64_t T = 4096, kLast = 64;

// All but vocabulary and feed-forward as published (spec A.1, A.3).
ModelConfig official_layer() {
  ModelConfig c;
  c.vocab_size = 512, c.hidden_size = 7168, c.intermediate_size = 64, c.moe_intermediate_size = 64;
  c.num_hidden_layers = 1, c.first_k_dense_replace = 1, c.num_attention_heads = 128;
  c.q_lora_rank = 1536, c.kv_lora_rank = 512, c.qk_nope_head_dim = 128, c.qk_rope_head_dim = 64, c.v_head_dim = 128;
  c.n_routed_experts = 8, c.n_shared_experts = 1, c.num_experts_per_tok = 2;
  c.index_n_heads = 64, c.index_head_dim = 128, c.index_topk = 2048;
  c.rope_scaling = RopeScaling{.factor = 40};
  c.initializer_range = 0;  // 1 / sqrt(inputs): activations of order one
  return c;
}

// The same layer from ATen and the references: rows of the last tokens, keys of all.
struct ReferenceLayer {
  at::Tensor scores_NS, out_ND;
};

ReferenceLayer reference_layer(const ModelConfig& c, const LayerWeights& layer, const at::Tensor& embedded_TD,
                               const at::Tensor& selected_NK) {
  namespace ref = ops::reference;
  const auto& w = layer.self_attn;
  int64_t H = c.num_attention_heads, nope = c.qk_nope_head_dim, P = c.qk_rope_head_dim, R = c.kv_lora_rank, E = nope + P;
  auto frequencies = rope_frequencies(c);
  auto positions = at::arange(T, at::kInt);
  auto all = ops::rotation(positions, frequencies), last = ops::rotation(positions.narrow(0, T - kLast, kLast), frequencies);
  auto x_TD = ref::rms_norm(embedded_TD, layer.input_layernorm, c.rms_norm_eps);
  auto x_ND = x_TD.narrow(0, T - kLast, kLast);
  auto latent_NL = ref::rms_norm(at::matmul(x_ND, w.q_a_proj.t()), w.q_a_layernorm, c.rms_norm_eps);

  auto index_q = at::matmul(latent_NL, w.indexer->wq_b.t()).view({kLast, c.index_n_heads, c.index_head_dim});
  auto index_k =
      ref::layer_norm(at::matmul(x_TD, w.indexer->wk.t()), w.indexer->k_norm, w.indexer->k_norm_bias, 1e-6).unsqueeze(1);
  index_q = ref::rope(index_q, last, 0, ops::Pairing::halves);
  index_k = ref::rope(index_k, all, 0, ops::Pairing::halves).squeeze(1);
  auto index_w = at::matmul(x_ND, w.indexer->weights_proj.t()) / std::sqrt(double(c.index_n_heads * c.index_head_dim));
  auto visible = at::stack({at::zeros({kLast}, at::kInt), positions.narrow(0, T - kLast, kLast) + 1}, 1).contiguous();

  auto q_NHE = ref::rope(at::matmul(latent_NL, w.q_b_proj.t()).view({kLast, H, E}), last, nope, ops::Pairing::adjacent);
  auto kv = at::matmul(x_TD, w.kv_a_proj_with_mqa.t());
  auto c_TR = ref::rms_norm(kv.narrow(1, 0, R), w.kv_a_layernorm, c.rms_norm_eps);
  auto k_rope = ref::rope(kv.narrow(1, R, P).unsqueeze(1), all, 0, ops::Pairing::adjacent).squeeze(1);
  auto kv_b = w.kv_b_proj.view({H, nope + c.v_head_dim, R});
  auto absorbed = at::einsum("nhe,her->nhr", {q_NHE.narrow(2, 0, nope), kv_b.narrow(1, 0, nope)});
  auto out_NHR = std::get<0>(ref::sparse_mla(at::cat({absorbed, q_NHE.narrow(2, nope, P)}, 2).contiguous(),
                                             at::cat({c_TR, k_rope}, 1).contiguous(), selected_NK, R, softmax_scale(c)));
  auto out_NHV = at::einsum("nhr,hvr->nhv", {out_NHR, kv_b.narrow(1, nope, c.v_head_dim)});
  return {ref::indexer_scores(index_q, index_k, index_w, visible), at::matmul(out_NHV.flatten(1), w.o_proj.t())};
}

TEST(OfficialSize, TheLastRowsOfAnAttentionLayerAreTheReferences) {
  c10::AutoGradMode no_grad(false);
  auto config = official_layer();
  Transformer model(config, init_weights(config, 1));
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < T; ++i) tokens.push_back(int32_t((i * i * 31 + i * 7) % 509));
  Cache cache(config, Attention::sparse, at::kFloat, pages_for(T));
  auto sequence = cached_sequences(1, T)[0];
  model.forward(append({&sequence}, {{tokens.begin(), tokens.end() - kLast}}), {}, &cache);
  Trace trace;
  model.forward(append({&sequence}, {{tokens.end() - kLast, tokens.end()}}), {.trace = &trace, .trace_scores = true}, &cache);
  const auto& got = trace[0];

  auto embedded = at::embedding(model.weights().embed_tokens, at::tensor(tokens, at::kLong));
  auto expected = reference_layer(config, model.weights().layers[0], embedded, got.selected_NK);
  auto relative = [](const at::Tensor& a, const at::Tensor& b) { return ((a - b).abs().max() / b.abs().max()).item<double>(); };
  auto seen = expected.scores_NS.isfinite();
  EXPECT_TRUE(at::equal(got.indexer_scores_NS.isfinite(), seen));
  EXPECT_LE(
      relative(got.indexer_scores_NS.masked_fill(seen.logical_not(), 0), expected.scores_NS.masked_fill(seen.logical_not(), 0)),
      2e-5);
  EXPECT_LE(relative(got.attn_out_ND, expected.out_ND), 2e-5);
  // Selected: all but keys whose scores tie within rounding.
  auto own = ops::reference::top_k(expected.scores_NS, at::arange(T - kLast + 1, T + 1, at::kInt), config.index_topk);
  double different = (own != got.selected_NK).any(1).sum().item<double>();
  EXPECT_LE(different, 3) << "rows whose selection differs";
}

}  // namespace
}  // namespace fulgur
