#include "fulgur/train/step.h"

#include <ATen/TensorOperators.h>

#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

// One forward and backward pass; losses are divided by the whole step's counts, which stand in `sums`.
void forward_backward(Transformer& model, const StageConfig& config, const TrainBatch& b, StepSums& sums) {
  bool language = config.kind != StageKind::warmup, kl = config.kind != StageKind::pretrain;
  ForwardOptions options{.attention = config.kind == StageKind::sparse ? Attention::sparse : Attention::dense,
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
    auto mtp_hidden = model.forward_mtp(b.batch, hidden, options, &losses);
    if (language && config.mtp_weight > 0) {
      auto nll = -ops::log_prob(mtp_hidden, model.weights().mtp->head, b.next2_N).sum();
      sums.mtp_nll += nll.item<double>();
      total.push_back(nll * (config.mtp_weight / double(std::max<int64_t>(1, sums.mtp_targets))));
    }
  }
  sums.kl.resize(losses.size()), sums.load.resize(losses.size());
  double sequences = double(config.batch_tokens / config.context);
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
      auto load = losses[i].experts_Nk.flatten().to(at::kLong).bincount({}, model.config().n_routed_experts).to(at::kDouble);
      sums.load[i] = sums.load[i].defined() ? sums.load[i] + load : load;
    }
  }
  auto loss = total[0];
  for (size_t i = 1; i < total.size(); ++i) loss = loss + total[i];
  loss.backward();
}

}  // namespace

StepSums accumulate_gradients(Transformer& model, const StageConfig& config, const std::vector<TrainBatch>& parts,
                              const Tokenizer& tokenizer) {
  StepSums sums;
  for (const auto& b : parts) {
    sums.targets += (b.next_N >= 0).sum().item<int64_t>();
    sums.mtp_targets += (b.next2_N >= 0).sum().item<int64_t>();
    sums.rows += b.next_N.size(0);
    const int* next = b.next_N.const_data_ptr<int>();
    for (int64_t i = 0; i < b.next_N.size(0); ++i)
      if (next[i] >= 0) sums.text_bytes += tokenizer.byte_length(next[i]);
  }
  for (const auto& part : parts) forward_backward(model, config, part, sums);
  return sums;
}

void balance_experts(Weights& weights, const StageConfig& config, const StepSums& sums) {
  if (config.kind == StageKind::warmup || config.bias_speed == 0) return;
  for (size_t i = 0; i < sums.load.size(); ++i) {
    if (!sums.load[i].defined()) continue;
    bool mtp = i == weights.layers.size();
    auto& moe = *(mtp ? weights.mtp->layer : weights.layers[i]).moe;
    auto change = (sums.load[i].mean() - sums.load[i]).sign() * config.bias_speed;
    moe.e_score_correction_bias.add_(change.to(at::kFloat));
  }
}

}  // namespace fulgur
