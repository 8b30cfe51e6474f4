#include "fulgur/train/adapt_plan.h"

#include <algorithm>
#include <cstdio>

#include "fulgur/base/progress.h"
#include "fulgur/model/cost.h"

namespace fulgur {
namespace {

// Floats a row has at the widest moment of a layer's forward pass, which keeps nothing.
int64_t widest(const ModelConfig& c) {
  int64_t D = c.hidden_size, H = c.num_attention_heads, G = c.key_heads(), E = c.qk_nope_head_dim + c.qk_rope_head_dim;
  int64_t stream = 4 * D, attention = H * E + G * (E + c.v_head_dim) + H * c.v_head_dim;
  if (c.has_latents()) attention += c.q_lora_rank + c.kv_lora_rank + c.qk_rope_head_dim + H * (c.qk_nope_head_dim + c.v_head_dim);
  int64_t mlp = 3 * c.intermediate_size + D;
  if (c.num_hidden_layers > c.first_k_dense_replace)
    mlp = std::max(mlp, c.num_experts_per_tok * (2 * D + 3 * c.moe_intermediate_size) + c.n_routed_experts + 2 * D);
  return stream + std::max(attention, mlp);
}

}  // namespace

AdaptationPlan plan_adaptation(const ModelConfig& c, const IndexerTeaching& t, const std::optional<StageConfig>& sparse) {
  AdaptationPlan plan;
  auto count = count_parameters(c);
  double rows = double(t.sequences * t.context), seen = double(t.context) / 2;
  plan.parameters = count.total + count.mtp, plan.indexer_parameters = count.indexers;
  plan.weights = 4 * plan.parameters, plan.moments = 3 * 4 * count.indexers;  // and the gradients, of a layer at a time
  plan.pass = 4 * t.batch * t.context * widest(c);
  auto dense = token_cost(c, Form::dense, t.context / 2, 4);
  plan.teach_flops = rows * (dense.flops - 2 * double(c.vocab_size * c.hidden_size));
  // A pair's score, its two gradients, and the attention it is held against.
  plan.teach_flops +=
      double(t.sequences * t.passes * t.rows) * seen *
      (3 * 2 * double(c.index_n_heads * c.index_head_dim * c.num_hidden_layers) + dense.attention_flops / seen / 2);
  auto stored = stored_bytes(c, Form::sparse, 4);
  plan.key_bytes = int64_t(stored.key) * c.num_hidden_layers,
  plan.index_bytes = c.tied_index() ? 0 : int64_t(stored.index_key) * c.num_hidden_layers;
  if (!sparse) return plan;
  plan.sparse = plan_step(c, *sparse).peak();
  plan.sparse_flops = double(sparse->tokens) * train_flops(c, TrainForm::sparse, sparse->context);
  return plan;
}

std::string AdaptationPlan::text() const {
  char out[1024];
  auto bytes = [](int64_t value) { return human_count(double(value)) + "B"; };
  std::snprintf(out, sizeof out,
                "plan      %s parameters, %s of them indexers; a token's keys %s, index keys %s beside them (f32)\n"
                "  teach   %s of memory: weights %s, moments %s, a step's pass %s; %s FLOP\n",
                human_count(double(parameters)).c_str(), human_count(double(indexer_parameters)).c_str(),
                bytes(key_bytes).c_str(), bytes(index_bytes).c_str(), bytes(teaching()).c_str(), bytes(weights).c_str(),
                bytes(moments).c_str(), bytes(pass).c_str(), human_count(teach_flops).c_str());
  std::string text = out;
  if (sparse == 0) return text;
  std::snprintf(out, sizeof out, "  sparse  %s of memory; %s FLOP\n", bytes(sparse).c_str(), human_count(sparse_flops).c_str());
  return text + out;
}

}  // namespace fulgur
