// Log-probabilities among what a draw chose from, at its temperature.
#include <algorithm>
#include <cmath>

#include "fulgur/ops/log_prob/head.h"
#include "fulgur/ops/log_prob/kernels.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur::ops {
namespace {

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double);
using Backward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                            const Tensor&, double);

// Of a row of logits what may be drawn, over the temperature; and where among it the token is, -1 when it is not.
struct KeptLogits {
  std::vector<float> values;
  int64_t place = -1;

  void take(const float* logits, int64_t size, std::span<const int32_t> kept, double temperature, int32_t token) {
    auto scale = float(1 / temperature);
    values.resize(kept.empty() ? size : int64_t(kept.size()));
    if (kept.empty())
      for (int64_t i = 0; i < size; ++i) values[i] = logits[i] * scale;
    else
      for (size_t i = 0; i < kept.size(); ++i) values[i] = logits[kept[i]] * scale;
    place = token;
    if (kept.empty()) return;
    auto found = std::lower_bound(kept.begin(), kept.end(), token);
    place = found != kept.end() && *found == token ? found - kept.begin() : -1;
  }
};

// Checked once, so that rows need no checks.
struct KeptSets {
  const int* offsets;
  const int* ids;

  KeptSets(const Tensor& offsets_N1, const Tensor& kept, const Tensor& targets, int64_t V)
      : offsets(offsets_N1.const_data_ptr<int>()),
        ids(kept.const_data_ptr<int>()) {
    int64_t N = targets.size(0);
    FULGUR_CHECK(
        offsets_N1.dim() == 1 && offsets_N1.size(0) == N + 1 && kept.dim() == 1 && offsets[0] == 0 && offsets[N] == kept.size(0),
        "[log_prob] expected offsets [", N + 1, "] from 0 to the number of kept tokens, got ", offsets_N1.sizes());
    const int* target = targets.const_data_ptr<int>();
    for (int64_t i = 0; i < N; ++i) {
      FULGUR_CHECK(offsets[i + 1] >= offsets[i], "[log_prob] expected offsets that ascend, got ", offsets[i + 1], " behind ",
                   offsets[i]);
      auto of = row(i);
      for (size_t j = 0; j < of.size(); ++j)
        FULGUR_CHECK(of[j] >= 0 && of[j] < V && (j == 0 || of[j] > of[j - 1]), "[log_prob] row ", i,
                     ": expected ascending tokens below ", V, ", got ", of[j]);
      FULGUR_CHECK(of.empty() || target[i] < 0 || std::binary_search(of.begin(), of.end(), target[i]), "[log_prob] row ", i,
                   ": expected a target among the kept tokens, got ", target[i]);
    }
  }
  std::span<const int32_t> row(int64_t i) const { return {ids + offsets[i], size_t(offsets[i + 1] - offsets[i])}; }
};

// Entropy in nats of softmax(y), whose log of the sum of exponentials is lse.
float entropy(const std::vector<float>& y, float lse) {
  double sum = 0;
  for (float value : y) {
    double log_p = double(value) - lse;
    if (log_p > -INFINITY) sum -= std::exp(log_p) * log_p;
  }
  return float(sum);
}

std::tuple<Tensor, Tensor> kept_log_prob_cpu(const Tensor& x_in, const Tensor& weight_in, const Tensor& targets_in,
                                             const Tensor& offsets_in, const Tensor& ids_in, double temperature) {
  check_head(x_in, weight_in);
  auto x = x_in.contiguous(), weight = weight_in.contiguous(), targets = targets_in.to(at::kInt).contiguous();
  auto offsets = offsets_in.to(at::kInt).contiguous(), ids = ids_in.to(at::kInt).contiguous();
  Weight w{weight, 0};
  int64_t N = x.size(0), V = w.outputs();
  check_targets(targets, N, V);
  KeptSets kept(offsets, ids, targets, V);
  Rows rows(x, w, "log_prob");
  auto options = x.options().dtype(at::kFloat);
  auto result = at::empty({N}, options), spread = at::empty({N}, options), chunk = at::empty({std::min(N, kChunk), V}, options);
  float *logits = chunk.mutable_data_ptr<float>(), *to = result.mutable_data_ptr<float>(),
        *entropies = spread.mutable_data_ptr<float>();
  const int* target = targets.const_data_ptr<int>();
  auto kernel = FULGUR_CALL(log_sum_exp);
  for (int64_t first = 0; first < N; first += kChunk) {
    int64_t count = std::min(kChunk, N - first);
    logits_into(rows, first, count, weight, logits);
    parallel_for(count, [&](int64_t i) {
      int64_t at = first + i;
      thread_local KeptLogits y;
      y.take(logits + i * V, V, kept.row(at), temperature, target[at]);
      float lse = kernel(y.values.data(), int64_t(y.values.size()));
      to[at] = target[at] < 0 ? 0 : y.values[y.place] - lse;
      entropies[at] = target[at] < 0 ? 0 : entropy(y.values, lse);
    });
  }
  return {result, spread};
}

// Gradients of sum(dresult * log-probability), f32.
std::tuple<Tensor, Tensor> kept_log_prob_backward_cpu(const Tensor& dresult_in, const Tensor& x_in, const Tensor& weight_in,
                                                      const Tensor& targets_in, const Tensor& offsets_in, const Tensor& ids_in,
                                                      double temperature) {
  check_head(x_in, weight_in);
  check_plain(weight_in, 2, "log_prob");
  auto x = x_in.contiguous(), weight = weight_in.contiguous(), targets = targets_in.to(at::kInt).contiguous();
  auto offsets = offsets_in.to(at::kInt).contiguous(), ids = ids_in.to(at::kInt).contiguous();
  auto dresult = dresult_in.contiguous();
  int64_t N = x.size(0), V = weight.size(0);
  check_targets(targets, N, V);
  KeptSets kept(offsets, ids, targets, V);
  auto options = x.options().dtype(at::kFloat);
  auto dx = at::empty(x.sizes(), options), dweight = at::zeros(weight.sizes(), options);
  auto chunk = at::empty({std::min(N, kChunk), V}, options);
  float* logits = chunk.mutable_data_ptr<float>();
  const int* target = targets.const_data_ptr<int>();
  const float* scale = dresult.const_data_ptr<float>();
  auto kernel = FULGUR_CALL(log_prob_gradient);
  for (int64_t first = 0; first < N; first += kChunk) {
    int64_t count = std::min(kChunk, N - first);
    logits_into(Rows(x), first, count, weight, logits);
    parallel_for(count, [&](int64_t i) {
      int64_t at = first + i;
      float* row = logits + i * V;
      auto of = kept.row(at);
      thread_local KeptLogits y;
      y.take(row, V, of, temperature, target[at]);
      kernel(y.values.data(), int64_t(y.values.size()), target[at] < 0 ? -1 : y.place, scale[at] * float(1 / temperature));
      if (of.empty()) {
        std::copy(y.values.begin(), y.values.end(), row);
        return;
      }
      std::fill(row, row + V, 0.0f);
      for (size_t j = 0; j < of.size(); ++j) row[of[j]] = y.values[j];
    });
    add_products(chunk, x, weight, first, count, dx, dweight);
  }
  return {dx, dweight};
}

std::tuple<Tensor, Tensor> kept_log_prob_meta(const Tensor& x, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                              double) {
  auto options = x.options().dtype(at::kFloat);
  return {at::empty_symint({x.sym_size(0)}, options), at::empty_symint({x.sym_size(0)}, options)};
}

std::tuple<Tensor, Tensor> kept_log_prob_backward_meta(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor&,
                                                       const Tensor&, const Tensor&, double) {
  auto options = x.options().dtype(at::kFloat);
  return {at::empty_symint(x.sym_sizes(), options), at::empty_symint(weight.sym_sizes(), options)};
}

struct KeptLogProbFunction : torch::autograd::Function<KeptLogProbFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& targets,
                               const Tensor& offsets, const Tensor& ids, double temperature) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = typed<Forward>("kept_log_prob");
    auto [result, spread] = op.call(x, weight, targets, offsets, ids, temperature);
    ctx->save_for_backward({x, weight, targets, offsets, ids});
    ctx->saved_data["temperature"] = temperature;
    ctx->mark_non_differentiable({spread});
    ctx->set_materialize_grads(false);
    return {result, spread};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("kept_log_prob_backward");
    auto s = ctx->get_saved_variables();
    auto [dx, dweight] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], ctx->saved_data["temperature"].toDouble());
    return {dx.to(s[0].scalar_type()), dweight.to(s[1].scalar_type()), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> kept_log_prob_autograd(const Tensor& x, const Tensor& weight, const Tensor& targets,
                                                  const Tensor& offsets, const Tensor& ids, double temperature) {
  auto out = KeptLogProbFunction::apply(x, weight, targets, offsets, ids, temperature);
  return {out[0], out[1]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def(
      "kept_log_prob(Tensor x, Tensor weight, Tensor targets, Tensor offsets, Tensor ids, float temperature) -> (Tensor, "
      "Tensor)");
  m.def(
      "kept_log_prob_backward(Tensor dresult, Tensor x, Tensor weight, Tensor targets, Tensor offsets, Tensor ids, "
      "float temperature) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("kept_log_prob", kept_log_prob_cpu);
  m.impl("kept_log_prob_backward", kept_log_prob_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("kept_log_prob", kept_log_prob_meta);
  m.impl("kept_log_prob_backward", kept_log_prob_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("kept_log_prob", kept_log_prob_autograd); }

}  // namespace

float kept_log_prob(std::span<const float> logits, std::span<const int32_t> kept, double temperature, int32_t token) {
  thread_local KeptLogits y;
  y.take(logits.data(), int64_t(logits.size()), kept, temperature, token);
  return y.place < 0 ? -INFINITY : y.values[y.place] - log_sum_exp(y.values.data(), int64_t(y.values.size()));
}

std::pair<Tensor, Tensor> kept_log_prob(const Tensor& x_ND, const Tensor& weight_VD, const Tensor& targets_N, const Kept& kept,
                                        double temperature) {
  FULGUR_CHECK(temperature > 0 && std::isfinite(1 / temperature), "[log_prob] expected a temperature above 0, got ", temperature);
  static const auto op = typed<Forward>("kept_log_prob");
  auto [log_prob, spread] = op.call(x_ND, weight_VD, targets_N, kept.offsets_N1, kept.ids, temperature);
  return {log_prob, spread};
}

}  // namespace fulgur::ops
