#include "fulgur/rl/update.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"

namespace fulgur {
namespace {

ForwardOptions forward_options(const RlConfig& rl, const Replay* replay) {
  return {.type = rl.dtype == "bf16" ? at::kBFloat16 : at::kFloat, .replay = replay};
}

// Which of the sampler's choices training repeats.
Replay kept_choices(const RlConfig& rl, const Replay& all) {
  Replay out;
  if (rl.keep_routing) out.experts_Nk = all.experts_Nk;
  if (rl.keep_selection) out.selected_NK = all.selected_NK;
  return out;
}

at::Tensor drawn_hidden(const Transformer& model, const PolicyRows& rows, const ForwardOptions& options,
                        std::vector<LayerLosses>* losses) {
  return model.forward(rows.batch, options, nullptr, losses).index_select(0, rows.rows);
}

std::vector<float> values(const at::Tensor& x_N) {
  auto x = x_N.detach().contiguous();
  return {x.const_data_ptr<float>(), x.const_data_ptr<float>() + x.numel()};
}

// What a member's tokens are divided by, the same for all ranks.
class Normaliser {
 public:
  Normaliser(const RlConfig& rl, const std::vector<UpdatePart>& parts, ProcessGroup& group) : rl_(rl) {
    double groups = 0, tokens = 0;
    for (const auto& part : parts) {
      groups += !part.members.empty();
      for (const Member* member : part.members) tokens += double(member->sampled());
    }
    for (const auto& of : group.gather(std::vector<double>{groups, tokens})) groups_ += of[0], tokens_ += of[1];
  }
  double weight(const UpdatePart& part, int64_t sampled) const {
    if (rl_.normalise == "token") return 1 / tokens_;
    double of_member = 1 / (groups_ * double(part.members.size()));
    if (rl_.normalise == "constant") return of_member / double(rl_.max_tokens * rl_.max_answers);
    return of_member / double(std::max<int64_t>(1, sampled));
  }

 private:
  const RlConfig& rl_;
  double groups_ = 0, tokens_ = 0;
};

// Where training and sampler part: the first layer whose choices differ when it is left to itself.
std::string first_difference(const Transformer& model, const RlConfig& rl, const std::vector<const Member*>& members) {
  c10::AutoGradMode no_grad(false);
  auto rows = policy_rows(model.config(), members, rl.keep_sampling_mask);
  Trace trace;
  auto options = forward_options(rl, nullptr);
  options.trace = &trace;
  model.forward(rows.batch, options);
  for (size_t i = 0; i < trace.size(); ++i) {
    auto differ = [&](const at::Tensor& now, const std::vector<at::Tensor>& then) {
      return now.defined() && i < then.size() && then[i].defined() && !now.equal(then[i]);
    };
    if (differ(trace[i].selected_NK, rows.replay.selected_NK)) return cat("layer ", i, " selects other keys");
    if (differ(trace[i].experts_Nk, rows.replay.experts_Nk)) return cat("layer ", i, " chooses other experts");
  }
  return "no layer's choices differ";
}

std::vector<double> row_of(const UpdateSums& s) {
  const auto& o = s.objective;
  std::vector<double> out{s.entropy,
                          s.rows,
                          s.match.tokens,
                          o.loss,
                          o.tokens,
                          o.members,
                          o.negative_members,
                          o.masked_members,
                          o.masked_tokens,
                          o.rejected_tokens,
                          o.clipped_tokens,
                          o.ratio,
                          o.log_old_over_new,
                          o.k1,
                          o.k3,
                          o.unbiased_kl};
  out.insert(out.end(), s.kl.begin(), s.kl.end());
  return out;
}

void add_row(const double* from, UpdateSums& s) {
  auto& o = s.objective;
  for (double* to :
       {&s.entropy, &s.rows, &s.match.tokens, &o.loss, &o.tokens, &o.members, &o.negative_members, &o.masked_members,
        &o.masked_tokens, &o.rejected_tokens, &o.clipped_tokens, &o.ratio, &o.log_old_over_new, &o.k1, &o.k3, &o.unbiased_kl})
    *to += *from++;
  for (double& kl : s.kl) kl += *from++;
}

}  // namespace

void UpdateSums::add(const UpdateSums& other) {
  kl.resize(other.kl.size());
  add_row(row_of(other).data(), *this);
  match.mismatch = std::max(match.mismatch, other.match.mismatch);
}

void Match::add(const Match& other) { mismatch = std::max(mismatch, other.mismatch), tokens += other.tokens; }

std::vector<float> policy_log_probs(const Transformer& model, const RlConfig& rl, const PolicyRows& rows, bool replayed) {
  c10::AutoGradMode no_grad(false);
  Replay replay = replayed ? kept_choices(rl, rows.replay) : Replay();
  auto hidden_ND = drawn_hidden(model, rows, forward_options(rl, &replay), nullptr);
  return values(ops::kept_log_prob(hidden_ND, model.weights().lm_head, rows.targets, rows.kept, rl.temperature).first);
}

namespace {

// The exactness this project is for: what was drawn with these very weights has the very probability it was drawn with.
Match match(const Transformer& model, const RlConfig& rl, const std::vector<const Member*>& members,
            const std::vector<float>& now, int64_t version) {
  Match out;
  size_t at = 0;
  for (size_t m = 0; m < members.size(); ++m)
    for (const auto& segment : members[m]->segments)
      for (size_t i = 0; i < segment.drawn.size(); ++i, ++at) {
        if (segment.version[i] != version) continue;
        double difference = std::fabs(double(now[at]) - segment.log_prob[i]);
        out.add({difference, 1});
        FULGUR_CHECK(!rl.exact || difference == 0, "[rl] member ", m, " of a group, token ", segment.drawn[i],
                     " of its segment: expected the sampler's log-probability ", segment.log_prob[i], ", got ", now[at], "; ",
                     first_difference(model, rl, members), "\n  hint: --exact false goes on; please report it");
      }
  return out;
}

}  // namespace

Match match_own_version(const Transformer& model, const RlConfig& rl, const std::vector<const Member*>& members,
                        int64_t version) {
  auto rows = policy_rows(model.config(), members, rl.keep_sampling_mask);
  return match(model, rl, members, policy_log_probs(model, rl, rows, /*replayed=*/false), version);
}

namespace {

// One part's loss, ready for backward(), and its measures.
at::Tensor part_loss(Transformer& model, const RlConfig& rl, const UpdatePart& part, const Normaliser& normaliser,
                     int64_t version, const Transformer* reference, double all_rows, UpdateSums& sums) {
  auto rows =
      policy_rows(model.config(), part.members, rl.keep_sampling_mask, rl.keep_selection ? RowLayout::shared : RowLayout::apart);
  Replay replay = kept_choices(rl, rows.replay);
  auto options = forward_options(rl, &replay);
  options.indexer_kl = rl.indexer_kl > 0;
  std::vector<LayerLosses> losses;
  auto hidden_ND = drawn_hidden(model, rows, options, &losses);
  auto [log_prob_N, entropy_N] = ops::kept_log_prob(hidden_ND, model.weights().lm_head, rows.targets, rows.kept, rl.temperature);
  auto now = values(log_prob_N);
  sums.match = match(model, rl, part.members, now, version);

  std::vector<float> of_reference;
  if (reference && rl.objective.kl_coefficient > 0)
    of_reference =
        policy_log_probs(*reference, rl, policy_rows(model.config(), part.members, rl.keep_sampling_mask), /*replayed=*/false);
  std::vector<double> weight;
  for (size_t m = 0; m < part.members.size(); ++m) weight.push_back(normaliser.weight(part, rows.counts[m]));
  auto measured = objective(rl.objective, {now, rows.old, of_reference, rows.proximal, rows.counts, part.advantage, weight});
  for (float value : values(entropy_N)) sums.entropy += value;
  auto loss = (log_prob_N * at::tensor(measured.gradient)).sum();
  measured.gradient.clear();
  sums.objective = measured;
  sums.rows = rows.copies_N.sum().item<double>();
  for (size_t i = 0; i < losses.size(); ++i) {
    if (!losses[i].kl_N.defined()) continue;
    auto kl = (losses[i].kl_N * rows.copies_N).sum();
    sums.kl[i] = kl.item<double>();
    loss = loss + kl * (rl.indexer_kl / (all_rows * double(losses.size())));
  }
  return loss;
}

// Operations of a model this wide or less are too short to share among threads: each thread takes a part of its own then.
constexpr int64_t kNarrow = 256;

struct PartResult {
  UpdateSums sums;
  std::vector<at::Tensor> gradients;
};

double rows_of(const std::vector<UpdatePart>& parts, ProcessGroup& group) {
  double rows = 0, all = 0;
  for (const auto& part : parts)
    for (const Member* member : part.members)
      for (const auto& segment : member->segments) rows += double(segment.tokens.size()) - 1;
  for (const auto& of : group.gather(std::vector<double>{rows})) all += of[0];
  return std::max(1.0, all);
}

}  // namespace

UpdateSums accumulate_policy_gradients(Transformer& model, const RlConfig& rl, const std::vector<UpdatePart>& parts,
                                       int64_t version, const Transformer* reference, ProcessGroup& group) {
  Normaliser normaliser(rl, parts, group);
  double all_rows = rows_of(parts, group);
  std::vector<at::Tensor> trained;
  for (const auto& parameter : parameters(model.weights()))
    if (parameter.tensor->requires_grad()) trained.push_back(*parameter.tensor);
  TreeSum tree;
  std::vector<double> measured;
  double mismatch = 0;
  size_t layers = model.weights().layers.size(), count = parts.size();
  size_t at_once = model.config().hidden_size <= kNarrow ? size_t(threads()) : 1;
  for (size_t first = 0; first < count; first += at_once) {
    std::vector<PartResult> results(std::min(at_once, count - first));
    parallel_for(int64_t(results.size()), [&](int64_t i) {
      auto& [sums, gradients] = results[size_t(i)];
      sums.kl.resize(layers), gradients.resize(trained.size());
      const auto& part = parts[first + size_t(i)];
      if (part.members.empty()) return;
      auto loss = part_loss(model, rl, part, normaliser, version, reference, all_rows, sums);
      gradients =
          torch::autograd::grad({loss}, trained, {}, /*retain_graph=*/false, /*create_graph=*/false, /*allow_unused=*/true);
    });
    for (auto& [sums, gradients] : results) {
      auto row = row_of(sums);
      measured.insert(measured.end(), row.begin(), row.end());
      mismatch = std::max(mismatch, sums.match.mismatch);
      tree.add(std::move(gradients));
    }
  }
  auto gradients = tree.take();
  // Ranks must send the same tensors, and one whose groups were all dropped has none.
  std::vector<double> has(trained.size());
  for (size_t i = 0; i < trained.size(); ++i) has[i] = gradients[i].defined();
  auto of_ranks = group.gather(has);
  std::vector<at::Tensor> sent;
  for (size_t i = 0; i < trained.size(); ++i) {
    if (std::none_of(of_ranks.begin(), of_ranks.end(), [&](const auto& of) { return of[i] != 0; })) continue;
    gradients[i] = gradients[i].defined() ? gradients[i].contiguous() : at::zeros_like(trained[i]).detach();
    sent.push_back(gradients[i]);
  }
  group.sum(sent);
  for (size_t i = 0; i < trained.size(); ++i) trained[i].mutable_grad() = gradients[i];

  UpdateSums sums;
  sums.kl.resize(layers);
  size_t width = row_of(sums).size();
  for (const auto& of_rank : group.gather(measured))
    for (size_t at = 0; at < of_rank.size(); at += width) add_row(of_rank.data() + at, sums);
  for (const auto& of : group.gather(std::vector<double>{mismatch})) sums.match.mismatch = std::max(sums.match.mismatch, of[0]);
  return sums;
}

ChangedChoices changed_choices(const Transformer& model, const RlConfig& rl, const UpdatePart& part) {
  c10::AutoGradMode no_grad(false);
  auto rows = policy_rows(model.config(), part.members, rl.keep_sampling_mask);
  Trace trace;
  auto options = forward_options(rl, nullptr);
  options.trace = &trace;
  model.forward(rows.batch, options);
  // Both ascend, so a choice that is gone shifts others: compare as sets.
  auto changed = [](const std::vector<at::Tensor>& then, auto of_layer) {
    int64_t all = 0, gone = 0;
    for (size_t i = 0; i < then.size(); ++i) {
      if (!then[i].defined()) continue;
      auto now_Nk = of_layer(i);
      const int *a = then[i].template const_data_ptr<int>(), *b = now_Nk.template const_data_ptr<int>();
      int64_t k = then[i].size(1);
      for (int64_t n = 0; n < then[i].size(0); ++n)
        for (int64_t j = 0; j < k; ++j) {
          if (a[n * k + j] < 0) continue;
          ++all, gone += std::find(b + n * k, b + (n + 1) * k, a[n * k + j]) == b + (n + 1) * k;
        }
    }
    return all > 0 ? double(gone) / double(all) : 0;
  };
  return {changed(rows.replay.experts_Nk, [&](size_t i) { return trace[i].experts_Nk; }),
          changed(rows.replay.selected_NK, [&](size_t i) { return trace[i].selected_NK; })};
}

}  // namespace fulgur
