#include "fulgur/train/step.h"

#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>

#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

// The loss of one forward pass, divided by the whole step's counts, which stand in `sums`. Adds its terms to `sums`.
at::Tensor forward_loss(Transformer& model, const StageConfig& config, const TrainBatch& b, StepSums& sums) {
  bool language = config.kind != StageKind::warmup, kl = config.kind != StageKind::pretrain;
  ForwardOptions options{.attention = is_sparse(config.kind) ? Attention::sparse : Attention::dense,
                         .type = config.dtype == "bf16" ? at::kBFloat16 : at::kFloat,
                         .indexer_kl = kl,
                         .balance_starts = language ? b.starts : at::Tensor()};
  std::vector<LayerLosses> losses;
  auto hidden = model.forward(b.batch, options, nullptr, &losses);
  std::vector<at::Tensor> total;
  if (language) {
    auto nll = -ops::log_prob(hidden, model.weights().lm_head, b.next_N).sum();
    sums.nll += nll.item<double>();
    total.push_back(nll / double(sums.targets));
  }
  if (model.weights().mtp) {
    auto mtp_hidden = model.forward_mtp(b.batch, hidden, options, nullptr, &losses);
    if (language && config.mtp_weight > 0) {
      auto nll = -ops::log_prob(mtp_hidden, model.weights().mtp->head, b.next2_N).sum();
      sums.mtp_nll += nll.item<double>();
      total.push_back(nll * (config.mtp_weight / double(std::max<int64_t>(1, sums.mtp_targets))));
    }
  }
  sums.kl.resize(losses.size()), sums.load.resize(losses.size());
  double sequences = double(config.batch_tokens) / double(config.context);
  for (size_t i = 0; i < losses.size(); ++i) {
    if (losses[i].kl_N.defined()) {
      auto rows = losses[i].kl_N;
      // MTP rows without a next token in their piece have no meaning.
      if (i == model.weights().layers.size()) rows = rows * (b.batch.positions_N.roll(-1) != 0);
      auto sum = rows.sum();
      sums.kl[i] += sum.item<double>() / double(sums.rows);
      total.push_back(sum / double(sums.rows));
    }
    if (losses[i].balance.defined()) {
      auto balance = losses[i].balance.sum() / sequences;
      sums.balance += balance.item<double>();
      if (config.balance_weight > 0) total.push_back(balance * config.balance_weight);
    }
    if (losses[i].experts_Nk.defined()) {
      const int* expert = losses[i].experts_Nk.const_data_ptr<int>();
      sums.load[i].resize(model.config().n_routed_experts);
      for (int64_t n = 0; n < losses[i].experts_Nk.numel(); ++n) ++sums.load[i][expert[n]];
    }
  }
  auto loss = total[0];
  for (size_t i = 1; i < total.size(); ++i) loss = loss + total[i];
  return loss;
}

// The losses of a part as numbers in a row, to send and to add.
std::vector<double> losses_of(const StepSums& sums) {
  std::vector<double> out{sums.nll, sums.mtp_nll, sums.balance};
  out.insert(out.end(), sums.kl.begin(), sums.kl.end());
  for (const auto& load : sums.load) out.insert(out.end(), load.begin(), load.end());
  return out;
}

void add_losses(const double* from, StepSums& sums) {
  for (double* to : {&sums.nll, &sums.mtp_nll, &sums.balance}) *to += *from++;
  for (double& kl : sums.kl) kl += *from++;
  for (auto& load : sums.load)
    for (double& tokens : load) tokens += *from++;
}

StepSums counts_of(const std::vector<TrainBatch>& parts, const Tokenizer& tokenizer, ProcessGroup& group) {
  int64_t targets = 0, mtp_targets = 0, rows = 0, text_bytes = 0;
  for (const auto& b : parts) {
    targets += (b.next_N >= 0).sum().item<int64_t>();
    mtp_targets += (b.next2_N >= 0).sum().item<int64_t>();
    rows += b.next_N.size(0);
    const int* next = b.next_N.const_data_ptr<int>();
    for (int64_t i = 0; i < b.next_N.size(0); ++i)
      if (next[i] >= 0) text_bytes += tokenizer.byte_length(next[i]);
  }
  StepSums sums;
  for (const auto& of : group.gather(std::vector<double>{double(targets), double(mtp_targets), double(rows), double(text_bytes)}))
    sums.targets += int64_t(of[0]), sums.mtp_targets += int64_t(of[1]), sums.rows += int64_t(of[2]),
        sums.text_bytes += int64_t(of[3]);
  return sums;
}

}  // namespace

StepSums accumulate_gradients(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                              const Tokenizer& tokenizer, ProcessGroup& group) {
  const StepSums counts = counts_of(parts, tokenizer, group);
  std::vector<at::Tensor*> trained;
  for (const auto& parameter : parameters(model.weights()))
    if (parameter.tensor->requires_grad()) trained.push_back(parameter.tensor);

  TreeSum tree;
  StepSums sums = counts;
  std::vector<double> losses{0};  // seconds first, then a row a part
  auto start = std::chrono::steady_clock::now();
  for (const auto& part : parts) {
    StepSums of_part = counts;
    forward_loss(model, config, part, of_part).backward();
    auto row = losses_of(of_part);
    losses.insert(losses.end(), row.begin(), row.end());
    sums.kl.resize(of_part.kl.size()), sums.load.resize(of_part.load.size());
    for (size_t i = 0; i < sums.load.size(); ++i) sums.load[i].resize(of_part.load[i].size());
    std::vector<at::Tensor> gradients;
    for (auto* tensor : trained) gradients.push_back(tensor->grad()), tensor->mutable_grad() = at::Tensor();
    tree.add(std::move(gradients));
  }
  losses[0] = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  auto gradients = tree.take();
  std::vector<at::Tensor> sent;
  for (auto& gradient : gradients)
    if (gradient.defined()) sent.push_back(gradient = gradient.contiguous());
  group.sum(sent);
  for (size_t i = 0; i < trained.size(); ++i) trained[i]->mutable_grad() = gradients[i];

  size_t a_part = losses_of(sums).size();
  for (const auto& of_rank : group.gather(losses)) {
    sums.rank_seconds.push_back(of_rank[0]);
    for (size_t at = 1; at < of_rank.size(); at += a_part) add_losses(of_rank.data() + at, sums);
  }
  return sums;
}

StepSums measure_losses(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                        const Tokenizer& tokenizer) {
  c10::AutoGradMode no_grad(false);
  ProcessGroup alone;
  StepSums sums = counts_of(parts, tokenizer, alone);
  for (const auto& part : parts) forward_loss(model, config, part, sums);
  return sums;
}

double shown_loss(const StageConfig& config, const StepSums& sums) {
  if (config.kind != StageKind::warmup) return sums.nll / double(std::max<int64_t>(1, sums.targets));
  double kl = 0;
  for (double of_layer : sums.kl) kl += of_layer;
  return kl;
}

void balance_experts(Weights& weights, const StageConfig& config, const StepSums& sums) {
  if (config.kind == StageKind::warmup || config.bias_speed == 0) return;
  for (size_t i = 0; i < sums.load.size(); ++i) {
    if (sums.load[i].empty()) continue;
    bool mtp = i == weights.layers.size();
    auto& moe = *(mtp ? weights.mtp->layer : weights.layers[i]).moe;
    double total = 0;
    for (double tokens : sums.load[i]) total += tokens;
    double mean = total / double(sums.load[i].size());
    float* bias = moe.e_score_correction_bias.mutable_data_ptr<float>();
    for (double tokens : sums.load[i])
      *bias++ += float(tokens < mean ? config.bias_speed : tokens > mean ? -config.bias_speed : 0);
  }
}

}  // namespace fulgur
