#include "fulgur/eval/dump.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

// Tokens as one batch of B sequences of T.
struct Input {
  Input(const Transformer& model, const at::Tensor& tokens) : tokens_BT(tokens.to(at::kInt).contiguous()) {
    FULGUR_CHECK(tokens.dim() == 2 && tokens.size(0) > 0 && tokens.size(1) > 2,
                 "[forward] tokens: expected int32 [batch, 3 or more], got ", tokens.sizes());
    auto range = tokens_BT.aminmax();
    FULGUR_CHECK(std::get<0>(range).item<int>() >= 0 && std::get<1>(range).item<int>() < model.config().vocab_size,
                 "[forward] tokens: expected ids below ", model.config().vocab_size, ", got ", std::get<0>(range).item<int>(),
                 " to ", std::get<1>(range).item<int>());
    B = tokens.size(0), T = tokens.size(1);
    batch = pack_documents(tokens_BT.flatten(), std::vector<int64_t>(B, T));
  }
  at::Tensor rows(const at::Tensor& x, int64_t keep) const {  // [B*T, ...] -> [B, keep, ...]
    return x.unflatten(0, {B, T}).narrow(1, 0, keep);
  }
  at::Tensor begin_N1() const { return batch.visible_N2.select(1, 0).unsqueeze(1); }
  at::Tensor relative_keys(const at::Tensor& selected_NK) const {
    return at::where(selected_NK >= 0, selected_NK - begin_N1(), selected_NK);
  }
  at::Tensor targets(int64_t ahead) const {  // tokens `ahead` positions later, -1 where there is none
    auto out = at::full_like(tokens_BT, -1);
    out.narrow(1, 0, T - ahead).copy_(tokens_BT.narrow(1, ahead, T - ahead));
    return out.flatten();
  }

  at::Tensor tokens_BT;
  int64_t B = 0, T = 0;
  Batch batch;
};

// MTP rows end one token early; the missing last row is filled with -1 (keys) or repeats (experts): it is never read.
Replay replay_of(const Tensors& dump, const Input& in, int64_t layers) {
  Replay replay;
  replay.selected_NK.resize(layers), replay.experts_Nk.resize(layers);
  auto all_rows = [&](const std::string& name) -> at::Tensor {
    auto x = dump.at(name).to(at::kInt);
    FULGUR_CHECK(x.dim() == 3 && x.size(0) == in.B && (x.size(1) == in.T || x.size(1) == in.T - 1), "[forward] replay ", name,
                 ": expected [", in.B, ", ", in.T, ", k], got ", x.sizes());
    if (x.size(1) == in.T - 1) x = at::cat({x, x.narrow(1, in.T - 2, 1)}, 1);
    return x.flatten(0, 1).contiguous();
  };
  for (int64_t i = 0; i < layers; ++i) {
    auto layer = cat("layer.", i, ".");
    if (dump.contains(layer + "selected")) {
      auto keys = all_rows(layer + "selected");
      replay.selected_NK[i] = at::where(keys >= 0, keys + in.begin_N1(), keys);
    }
    if (dump.contains(layer + "experts")) replay.experts_Nk[i] = all_rows(layer + "experts");
  }
  return replay;
}

ForwardOptions forward_options(const DumpOptions& options) {
  return {
      .attention = options.attention, .type = options.type, .hadamard = options.hadamard, .simulate_fp8 = options.simulate_fp8};
}

// Scores [N, S] of packed sequences -> [B, keep, T], 0 where a key comes later.
at::Tensor own_scores(const at::Tensor& scores_NS, const Input& in, int64_t keep) {
  std::vector<at::Tensor> blocks;
  for (int64_t b = 0; b < in.B; ++b) blocks.push_back(scores_NS.narrow(0, b * in.T, keep).narrow(1, b * in.T, in.T));
  auto own = at::stack(blocks);
  return own.masked_fill(own == -INFINITY, 0);
}

struct Losses {
  at::Tensor main, mtp;
};
Losses losses_of(const Transformer& model, const Input& in, const at::Tensor& hidden, const at::Tensor& mtp_hidden) {
  const Weights& w = model.weights();
  Losses out;
  out.main = -ops::log_prob(hidden, w.lm_head, in.targets(1)).sum() / double(in.B * (in.T - 1));
  if (mtp_hidden.defined()) out.mtp = -ops::log_prob(mtp_hidden, w.mtp->head, in.targets(2)).sum() / double(in.B * (in.T - 2));
  return out;
}

// d total / d parameter by official name, for all parameters `wanted` says yes to; zeros where nothing arrived.
void gradients(Transformer& model, const at::Tensor& total, const std::string& prefix, Tensors& out,
               const std::function<bool(const std::string&)>& wanted) {
  auto params = parameters(model.weights());
  for (auto& p : params) p.tensor->mutable_grad() = at::Tensor();
  total.backward();
  Weights copy = model.weights();  // the structure, its tensors replaced by their gradients
  for (auto& p : parameters(copy)) *p.tensor = p.tensor->grad().defined() ? p.tensor->grad() : at::zeros_like(*p.tensor).detach();
  for (auto& [name, gradient] : export_weights(model.config(), copy))
    if (wanted(name)) out[prefix + name] = gradient.contiguous();
}

std::string mtp_prefix(const Transformer& model) { return cat("model.layers.", model.config().num_hidden_layers, "."); }

void no_chunk(const DumpOptions& options) {
  FULGUR_CHECK(options.chunk == 0, "[forward] --chunk: expected it with --dump logits, got it with another dump");
}

}  // namespace

Tensors dump_forward(const Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& given) {
  no_chunk(given);
  c10::AutoGradMode no_grad(false);
  Input in(model, tokens_BT);
  const Weights& w = model.weights();
  Trace trace;
  ForwardOptions options = forward_options(given);
  options.trace = &trace, options.trace_scores = model.config().has_indexer();
  Replay replay;
  if (given.replay) replay = replay_of(*given.replay, in, int64_t(w.layers.size()) + 1), options.replay = &replay;
  Tensors out;
  auto hidden = model.forward(in.batch, options);
  out["logits"] = in.rows(ops::logits(hidden, w.lm_head), in.T);
  at::Tensor mtp_hidden;
  if (w.mtp) {
    mtp_hidden = model.forward_mtp(in.batch, hidden, options);
    out["mtp.logits"] = in.rows(ops::logits(mtp_hidden, w.mtp->head), in.T - 1);
  }
  auto losses = losses_of(model, in, hidden, mtp_hidden);
  out["loss"] = losses.main.view({1});
  if (w.mtp) out["mtp_loss"] = losses.mtp.view({1}), out["total_loss"] = (losses.main + 0.3 * losses.mtp).view({1});
  for (int64_t i = 0; i < int64_t(trace.size()); ++i) {
    int64_t keep = i < int64_t(w.layers.size()) ? in.T : in.T - 1;
    auto layer = cat("layer.", i, ".");
    const LayerTrace& t = trace[i];
    out[layer + "hidden"] = in.rows(t.hidden_ND, keep).to(at::kFloat);
    out[layer + "attn_out"] = in.rows(t.attn_out_ND, keep).to(at::kFloat);
    if (t.selected_NK.defined()) out[layer + "selected"] = in.rows(in.relative_keys(t.selected_NK), keep);
    if (t.indexer_scores_NS.defined()) out[layer + "indexer_scores"] = own_scores(t.indexer_scores_NS, in, keep);
    if (t.experts_Nk.defined()) {
      out[layer + "experts"] = in.rows(t.experts_Nk, keep);
      out[layer + "expert_weights"] = in.rows(t.expert_weights_Nk, keep);
    }
  }
  for (auto& [name, tensor] : out) tensor = tensor.contiguous();
  return out;
}

Tensors dump_logits(const Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& given) {
  c10::AutoGradMode no_grad(false);
  Input in(model, tokens_BT);
  auto options = forward_options(given);
  const auto& head = model.weights().lm_head;
  if (given.chunk == 0 && given.cache.plain())
    return {{"logits", in.rows(ops::logits(model.forward(in.batch, options), head), in.T).contiguous()}};
  Cache cache(model.config(), given.attention, given.type, in.B * pages_for(in.T), {.format = given.cache});
  auto sequences = cached_sequences(in.B, in.T);
  std::vector<CachedSequence*> all;
  for (auto& sequence : sequences) all.push_back(&sequence);
  std::vector<at::Tensor> parts;
  int64_t chunk = given.chunk > 0 ? given.chunk : in.T;
  for (int64_t at = 0; at < in.T; at += chunk) {
    int64_t count = std::min(chunk, in.T - at);
    std::vector<std::vector<int32_t>> tokens;
    for (int64_t b = 0; b < in.B; ++b) {
      const int* row = in.tokens_BT.const_data_ptr<int>() + b * in.T + at;
      tokens.emplace_back(row, row + count);
    }
    auto hidden = model.forward(append(all, tokens), options, &cache);
    parts.push_back(ops::logits(hidden, head).unflatten(0, {in.B, count}));
  }
  return {{"logits", at::cat(parts, 1).contiguous()}};
}

Tensors dump_grad(Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& given) {
  no_chunk(given);
  Input in(model, tokens_BT);
  for (auto& p : parameters(model.weights())) p.tensor->requires_grad_(p.trained() && !p.indexer());
  auto options = forward_options(given);
  auto hidden = model.forward(in.batch, options);
  at::Tensor mtp_hidden;
  if (model.weights().mtp) mtp_hidden = model.forward_mtp(in.batch, hidden.detach(), options);
  auto losses = losses_of(model, in, hidden, mtp_hidden);
  Tensors out{{"loss", losses.main.detach().view({1})}};
  auto trained = [](const std::string& name) {
    return name.find(".indexer.") == std::string::npos && name.find("correction_bias") == std::string::npos;
  };
  auto is_mtp = [&](const std::string& name) { return name.rfind(mtp_prefix(model), 0) == 0; };
  gradients(model, losses.main, "grad.", out, [&](const std::string& name) { return trained(name) && !is_mtp(name); });
  if (mtp_hidden.defined()) {
    out["mtp_loss"] = losses.mtp.detach().view({1});
    gradients(model, losses.mtp, "grad_mtp.", out, [&](const std::string& name) { return trained(name) && is_mtp(name); });
  }
  return out;
}

Tensors dump_kl(Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& given) {
  no_chunk(given);
  Input in(model, tokens_BT);
  for (auto& p : parameters(model.weights())) p.tensor->requires_grad_(p.indexer());
  Tensors out;
  for (auto attention : {Attention::dense, Attention::sparse}) {
    std::string kind = attention == Attention::dense ? "kl_dense" : "kl_sparse";
    std::vector<LayerLosses> losses;
    auto options = forward_options(given);
    options.attention = attention, options.indexer_kl = true;
    auto hidden = model.forward(in.batch, options, nullptr, &losses);
    if (attention == Attention::sparse && model.weights().mtp) model.forward_mtp(in.batch, hidden, options, nullptr, &losses);
    std::vector<at::Tensor> rows;
    at::Tensor total;
    for (size_t i = 0; i < losses.size(); ++i) {
      auto kl_BT = losses[i].kl_N.view({in.B, in.T});
      if (i == model.weights().layers.size()) {  // the MTP layer has no last row
        auto keep = at::ones_like(kl_BT).detach();
        keep.select(1, in.T - 1).zero_();
        kl_BT = kl_BT * keep;
      }
      rows.push_back(kl_BT.detach());
      total = total.defined() ? total + kl_BT.sum() : kl_BT.sum();
    }
    out[kind + ".rows"] = at::stack(rows);
    out[kind + ".layer"] = out[kind + ".rows"].sum({1, 2});
    bool with_mtp = attention == Attention::sparse;
    gradients(model, total, "grad_" + kind + ".", out, [&](const std::string& name) {
      return name.find(".indexer.") != std::string::npos && (with_mtp || name.rfind(mtp_prefix(model), 0) != 0);
    });
  }
  return out;
}

Tensors dump_greedy(const Transformer& model, const at::Tensor& prompt, int64_t steps, const DumpOptions& given) {
  c10::AutoGradMode no_grad(false);
  auto flat = prompt.to(at::kInt).flatten().contiguous();
  FULGUR_CHECK(flat.numel() > 0 && steps > 0, "[forward] expected a prompt and at least one step, got ", flat.numel(),
               " tokens and ", steps);
  std::vector<int32_t> next(flat.const_data_ptr<int>(), flat.const_data_ptr<int>() + flat.numel()), generated;
  for (int32_t id : next)
    FULGUR_CHECK(id >= 0 && id < model.config().vocab_size, "[forward] prompt: expected ids below ", model.config().vocab_size,
                 ", got ", id);
  Cache cache(model.config(), given.attention, given.type, pages_for(flat.numel() + steps), {.format = given.cache});
  auto sequence = cached_sequences(1, flat.numel() + steps)[0];
  std::vector<at::Tensor> logits, selected;
  for (int64_t step = 0; step < steps; ++step) {
    Trace trace;
    auto options = forward_options(given);
    if (step + 1 == steps) options.trace = &trace;
    auto hidden = model.forward(append({&sequence}, {next}), options, &cache);
    logits.push_back(ops::logits(hidden.narrow(0, hidden.size(0) - 1, 1), model.weights().lm_head).squeeze(0));
    next = {int32_t(logits.back().argmax().item<int64_t>())};
    generated.push_back(next[0]);
    for (const auto& layer : trace)
      if (layer.selected_NK.defined()) selected.push_back(layer.selected_NK[-1]);
  }
  auto ids = at::full_like(flat.new_empty({steps}), 0);
  std::copy(generated.begin(), generated.end(), ids.mutable_data_ptr<int>());
  Tensors out{{"generated", ids}, {"step_logits", at::stack(logits)}};
  if (!selected.empty()) out["last_step_selected"] = at::stack(selected);
  return out;
}

}  // namespace fulgur
