#include "fulgur/train/plan.h"

#include <algorithm>
#include <bit>

#include "fulgur/base/error.h"
#include "fulgur/model/names.h"
#include "fulgur/ops/arena.h"
#include "fulgur/ops/linear/gathered.h"

namespace fulgur {
namespace {

// Sizes of the model, as in model/weights.h, and of one pass over N rows.
struct Sizes {
  explicit Sizes(const ModelConfig& c, const StageConfig& s)
      : kind(std::min(s.kind, StageKind::sparse)),
        N(s.micro_tokens),
        bytes(s.dtype == "bf16" ? 2 : 4),
        V(c.vocab_size),
        D(c.hidden_size),
        Lq(c.q_lora_rank),
        R(c.kv_lora_rank),
        P(c.qk_rope_head_dim),
        C(R + P),
        H(c.num_attention_heads),
        grouped(!c.has_latents()),
        G(c.key_heads()),
        HE(H * (c.qk_nope_head_dim + P)),
        HV(H * c.v_head_dim),
        Hkv(H * (c.qk_nope_head_dim + c.v_head_dim)),
        J(c.index_n_heads),
        Di(c.index_head_dim),
        GE(G * c.v_head_dim),
        tied(c.tied_index()),
        index_keys(tied && grouped ? GE : Di),
        K(c.index_topk),
        F(c.intermediate_size),
        X(c.n_routed_experts),
        k(c.num_experts_per_tok),
        M(c.moe_intermediate_size),
        Ms(c.n_shared_experts * M) {}

  int64_t rows(int64_t width) const { return arena_block(N * width * bytes); }  // activations
  int64_t f32(int64_t width) const { return arena_block(N * width * 4); }       // statistics, and int32
  int64_t as_f32(int64_t width) const { return bytes == 4 ? 0 : f32(width); }   // the f32 beside a bf16 tensor
  int64_t as_bf16(int64_t width) const { return bytes == 4 ? 0 : rows(width); }

  StageKind kind;
  int64_t N, bytes, V, D, Lq, R, P, C, H;
  bool grouped;
  int64_t G, HE, HV, Hkv, J, Di, GE;
  bool tied;
  int64_t index_keys, K, F, X, k, M, Ms;
};

// ---- kept: what each operation saves for its backward pass, each tensor once ----

// Warm-up: the model has no backward pass, and only the indexer's input stays.
int64_t kept_norms(const Sizes& s) {
  if (s.kind == StageKind::warmup) return s.rows(s.D);
  return 2 * (2 * s.rows(s.D) + s.f32(1));  // the stream and its norm, before attention and before the MLP; 1 / rms
}

// Grouped-query attention: q, keys, values, out and lse. A gradient of dense attention wants keys and values for each head.
int64_t kept_grouped(const Sizes& s) {
  if (s.kind == StageKind::warmup) return s.rows(s.HE) + s.rows(s.GE) + s.f32(s.H);
  return 2 * s.rows(s.HE) + s.f32(s.H) + (s.kind == StageKind::sparse ? s.rows(2 * s.GE) : 2 * s.rows(s.HE));
}

int64_t kept_attention(const Sizes& s) {
  if (s.grouped) return kept_grouped(s);
  if (s.kind == StageKind::warmup) return s.rows(s.Lq) + 2 * s.rows(s.HE) + s.f32(s.H);  // the KL's q, k, lse; latent
  int64_t low_rank = 2 * s.rows(s.Lq) + s.rows(s.C) + 2 * s.f32(1);  // q_a and its norm; kv_a, of which the norm reads a part
  if (s.kind == StageKind::pretrain)                                 // c; q, k, v, out, lse of dense_mla
    return low_rank + s.rows(s.R) + 2 * s.rows(s.HE) + 2 * s.rows(s.HV) + s.f32(s.H);
  return low_rank + s.rows(s.HE) + s.rows(s.H * s.C) + s.rows(s.C)  // q before UK; q and kv of sparse_mla
         + s.rows(s.H * s.R) + s.f32(s.H) + s.rows(s.HV);           // its out and lse; o_proj's input
}

int64_t kept_indexer(const Sizes& s) {
  if (s.kind == StageKind::pretrain) return 0;
  int64_t own_keys = s.tied ? 0 : 2 * s.rows(s.Di) + 2 * s.f32(1);  // before their norm and after; mean and 1 / deviation
  return s.rows(s.J * s.Di) + own_keys + s.f32(s.J)                 // q; w
         + s.as_f32(s.D)                                            // the weights' f32 input
         + s.f32(s.J * s.Di) + s.f32(s.index_keys) + s.f32(s.J)     // the KL's gradients, made in the forward pass
         + (s.kind == StageKind::sparse ? 2 * s.f32(s.K) : 0);      // selected keys and their target
}

int64_t kept_mlp(const Sizes& s, bool moe) {
  if (s.kind == StageKind::warmup) return moe ? s.f32(s.k) : 0;  // experts' ids, to count the load
  if (!moe) return 3 * s.rows(s.F);                              // gate, up, swiglu
  return s.f32(s.X) + 2 * s.f32(s.k) + s.as_f32(s.D)             // logits; ids, weights; the router's f32 input
         + 3 * s.rows(s.Ms)                                      // shared expert: gate, up, swiglu
         + 2 * s.rows(s.k * s.M) + s.rows(s.k * s.D);            // experts: gate, up, out
}

// ---- workspace: what lives for a moment only ----

int64_t logits_forward(const Sizes& s) {
  constexpr int64_t kRows = 512;  // log_prob's chunk
  return arena_block(std::min(s.N, kRows) * s.V * 4);
}

int64_t mlp_backward(const Sizes& s, bool moe) {
  if (!moe) return s.rows(s.D) + 2 * s.rows(s.F);    // dy; d gate, d up; d swiglu in place of the freed swiglu
  return s.rows(s.D) + s.f32(s.D) + s.as_bf16(s.D)   // dy; dx
         + 2 * s.rows(s.k * s.D) + s.f32(s.k * s.D)  // d out, x by expert; dx by expert
         + 4 * s.rows(s.k * s.M) + s.f32(s.k);       // d hidden, hidden, d gate, d up; d weights
}

// Of a layer's kept bytes, what is free when its attention core goes back: o_proj's input, and the KL's q, k, w.
int64_t freed_before_attention(const Sizes& s) {
  return s.kind == StageKind::sparse ? s.rows(s.HV) + s.rows(s.J * s.Di) + s.rows(s.Di) + s.f32(s.J) : 0;
}

int64_t grouped_backward(const Sizes& s) {
  int64_t own = s.rows(s.D) + s.rows(s.HV) + s.f32(s.HE) + s.as_bf16(s.HE);  // d stream; d out; dq
  if (s.kind == StageKind::pretrain) return own + 2 * (s.f32(s.HE) + s.as_bf16(s.HE));
  KeyGradients keys{};  // a group after the other
  keys.N = s.N, keys.K = s.K, keys.terms = 2 * s.H / s.G, keys.length = 2 * s.GE / s.G;
  return own + s.f32(2 * s.GE) + s.as_bf16(2 * s.GE) + arena_block(keys.slots() * keys.slot_size() * 4);
}

int64_t attention_backward(const Sizes& s) {
  if (s.grouped) return grouped_backward(s);
  if (s.kind == StageKind::pretrain)  // d stream; d out; dq, dk, dv
    return s.rows(s.D) + s.rows(s.HV) + 2 * s.f32(s.HE) + s.f32(s.HV) + 2 * s.as_bf16(s.HE) + s.as_bf16(s.HV);
  KeyGradients keys{};  // the factors of some queries' gradients of their keys
  keys.N = s.N, keys.K = s.K, keys.terms = 2 * s.H, keys.length = s.C;
  return s.rows(s.D) + s.rows(s.H * s.R) + s.f32(s.H * s.C) + s.f32(s.C)  // d stream; d out; dq; dkv
         + s.as_bf16(s.H * s.C) + s.as_bf16(s.C) + arena_block(keys.slots() * keys.slot_size() * 4);
}

// The KL's gradients again, now times the loss's weight; an input's gradient that nobody wants is made all the same.
int64_t indexer_backward(const Sizes& s) {
  return s.f32(s.J * s.Di) + s.f32(s.Di) + s.f32(s.J) + s.as_bf16(s.J * s.Di) + s.as_bf16(s.Di) + s.rows(s.Lq);
}

// Warm-up peaks in the forward pass: variables of the layer at hand, of which nothing is kept. MTP's frame holds more of them.
int64_t attention_forward(const Sizes& s, bool mtp) {
  return (mtp ? 5 : 3) * s.rows(s.D)                // input, residual, stream; MTP: input, hidden, embedding, joined
         + s.rows(s.C) + s.rows(s.R) + s.rows(s.P)  // kv_a, c, k_rope
         + s.rows(s.Hkv) + 2 * s.rows(s.HV);        // expanded, v, out
}

int64_t mlp_forward(const Sizes& s, bool moe, bool mtp) {
  int64_t streams = (mtp ? 8 : 6) * s.rows(s.D);             // those, and attended, second, after
  if (!moe) return streams + s.rows(s.D) + 3 * s.rows(s.F);  // y; gate, up, swiglu
  return streams + 2 * s.rows(s.D)                           // y, the shared expert's
         + 2 * s.rows(s.k * s.D) + 3 * s.rows(s.k * s.M)     // by expert: x, out; gate, up, hidden
         + s.f32(s.X) + s.f32(s.k);                          // logits, weights
}

// ---- weights ----

// f32 bytes of weights and of the gradients a stage makes, by the place where the backward pass makes them.
struct Parameters {
  struct Layer {
    int64_t mlp = 0, rest = 0;
    int64_t all() const { return mlp + rest; }
  };
  int64_t weights = 0, embedding = 0, head = 0;
  std::vector<Layer> layers;  // MTP's last

  int64_t trained() const {
    int64_t sum = embedding + head;
    for (const auto& layer : layers) sum += layer.all();
    return sum;
  }
};

// Experts are stacked, and MTP's embedding and head are the main model's: as training holds them.
Parameters parameters_of(const ModelConfig& config, StageKind kind) {
  Parameters out;
  out.layers.resize(config.num_hidden_layers + config.num_nextn_predict_layers);
  for (const auto& [name, shape] : tensor_specs(config)) {
    auto has = [&, &name = name](const char* part) { return name.find(part) != std::string::npos; };
    bool stacked = has(".experts."), shared = has("layers.") && (has("embed_tokens") || has("shared_head.head"));
    if (shared || (stacked && !has(".experts.0."))) continue;
    int64_t size = stacked ? 4 * config.n_routed_experts : 4;
    for (int64_t extent : shape) size *= extent;
    int64_t block = arena_block(size);
    out.weights += block;
    bool wanted = !has("correction_bias") && (kind == StageKind::sparse || has(".indexer.") == (kind == StageKind::warmup));
    if (!wanted) continue;
    if (has("embed_tokens")) out.embedding += block;
    else if (!has("layers.")) out.head += block;
    else {
      auto& layer = out.layers[std::stoll(name.substr(std::string("model.layers.").size()))];
      (has(".mlp.") ? layer.mlp : layer.rest) += block;
    }
  }
  return out;
}

// ---- the step ----

struct Layout {
  Layout(const ModelConfig& c, const StageConfig& s)
      : sizes(c, s),
        parameters(parameters_of(c, sizes.kind)),
        has_mtp(c.num_nextn_predict_layers > 0),
        main_layers(c.num_hidden_layers) {}

  Sizes sizes;
  Parameters parameters;
  bool has_mtp;
  int64_t main_layers;

  bool is_mtp(size_t layer) const { return int64_t(layer) == main_layers; }
  // Of log_prob, which makes its gradients in the forward pass, and of the last norm before it.
  int64_t kept_head() const { return 2 * sizes.rows(sizes.D) + 3 * sizes.f32(1) + sizes.f32(sizes.D) + parameters.head; }
  // MTP's own input: the embedding, and embedding and hidden joined.
  int64_t kept_mtp_input() const { return 3 * sizes.rows(sizes.D) + 2 * sizes.f32(1); }
};

// The backward pass of pretrain and sparse, from the losses to the embedding. Gradients of the head and of the embedding are
// there from MTP's use on, and made a second time before both are added.
void add_backward(const Layout& l, const ModelConfig& config, StepPlan& plan) {
  const auto& s = l.sizes;
  int64_t below = plan.ends, made = 0, head = l.parameters.head, embedding = l.parameters.embedding;
  for (const auto& layer : plan.layers) below += layer.all();
  plan.points.push_back({"logits, forward", below, 0, logits_forward(s)});
  auto use_head = [&](const std::string& name) {
    plan.points.push_back({name, below, made + head, s.f32(s.D) + s.as_bf16(s.D)});
    below -= l.kept_head();
  };
  use_head(l.has_mtp ? "head, MTP" : "head");
  made += head;
  for (size_t i = plan.layers.size(); i-- > 0;) {
    const auto& layer = plan.layers[i];
    const auto& gradients = l.parameters.layers[i];
    bool moe = l.is_mtp(i) || config.is_moe(int64_t(i));
    plan.points.push_back({cat(moe ? "experts, " : "MLP, ", layer.name), below, made + gradients.mlp, mlp_backward(s, moe)});
    plan.points.push_back({cat("attention, ", layer.name), below - layer.mlp - layer.norms / 2 - freed_before_attention(s),
                           made + gradients.all(), attention_backward(s)});
    below -= layer.all(), made += gradients.all();
    if (!l.is_mtp(i)) continue;
    made += embedding, below -= l.kept_mtp_input();
    use_head("head");
  }
  plan.points.push_back({"embedding", below, made + embedding, s.rows(s.D)});
}

// Warm-up: layers pile up what their KL keeps; then each KL goes back, alone.
void add_warmup(const Layout& l, const ModelConfig& config, StepPlan& plan) {
  int64_t kept = 0, made = 0;
  for (size_t i = 0; i < plan.layers.size(); ++i) {
    const auto& layer = plan.layers[i];
    bool mtp = l.is_mtp(i), moe = mtp || config.is_moe(int64_t(i));
    kept += layer.all();
    plan.points.push_back({cat("attention forward, ", layer.name), kept, 0, attention_forward(l.sizes, mtp)});
    plan.points.push_back({cat(moe ? "experts" : "MLP", " forward, ", layer.name), kept, 0, mlp_forward(l.sizes, moe, mtp)});
  }
  for (size_t i = plan.layers.size(); i-- > 0;) {
    made += l.parameters.layers[i].all();
    plan.points.push_back({cat("indexer, ", plan.layers[i].name), kept, made, indexer_backward(l.sizes)});
    kept -= plan.layers[i].all();
  }
}

}  // namespace

const StepPoint& StepPlan::highest() const {
  return *std::max_element(points.begin(), points.end(), [](const auto& a, const auto& b) { return a.all() < b.all(); });
}

StepPlan plan_step(const ModelConfig& config, const StageConfig& stage) {
  FULGUR_CHECK(config.has_indexer() || stage.kind == StageKind::pretrain, "[plan] expected a model with an indexer for ",
               stage_name(stage.kind), ", got ", config.model_type, "\n  hint: without an indexer there is only pretrain");
  Layout l(config, stage);
  const auto& s = l.sizes;
  StepPlan plan;
  plan.weights = l.parameters.weights;
  plan.optimiser = 2 * l.parameters.trained();
  // TreeSum holds a partial sum for each bit of the number of parts added so far.
  plan.sums = (std::bit_width(uint64_t(stage.batch_tokens / stage.micro_tokens)) - 1) * l.parameters.trained();
  // tokens, positions, two targets, visible ranges; cos and sin for the main model and for MTP, and its tokens.
  plan.batch = 4 * s.f32(1) + s.f32(2) + 2 * s.f32(s.P / 2) * (l.has_mtp ? 2 : 1) + (l.has_mtp ? s.f32(1) : 0);
  for (size_t i = 0; i < l.parameters.layers.size(); ++i) {
    bool mtp = l.is_mtp(i);
    plan.layers.push_back({mtp ? "MTP layer" : cat("layer ", i), kept_norms(s), kept_attention(s), kept_indexer(s),
                           kept_mlp(s, mtp || config.is_moe(int64_t(i)))});
  }
  if (stage.kind == StageKind::warmup) {
    add_warmup(l, config, plan);
  } else {
    plan.ends = l.kept_head() + (l.has_mtp ? l.kept_head() + l.kept_mtp_input() : 0);
    add_backward(l, config, plan);
  }
  return plan;
}

Json plan_json(const StepPlan& plan) {
  Json layers = Json::array(), points = Json::array();
  for (const auto& layer : plan.layers)
    layers.push_back({{"name", layer.name},
                      {"norms", layer.norms},
                      {"attention", layer.attention},
                      {"indexer", layer.indexer},
                      {"mlp", layer.mlp}});
  for (const auto& point : plan.points)
    points.push_back(
        {{"name", point.name}, {"kept", point.kept}, {"gradients", point.gradients}, {"workspace", point.workspace}});
  return {{"planned_bytes", plan.peak()},
          {"peak_at", plan.highest().name},
          {"weights", plan.weights},
          {"optimiser", plan.optimiser},
          {"gradient_sums", plan.sums},
          {"batch", plan.batch},
          {"layers", layers},
          {"ends", plan.ends},
          {"points", points}};
}

}  // namespace fulgur
