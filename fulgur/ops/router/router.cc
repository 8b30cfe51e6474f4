#include "fulgur/ops/router/router.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fulgur/ops/op.h"
#include "fulgur/ops/router/kernels.h"

namespace fulgur::ops {
namespace {

using RouteSignature = Tensor(const Tensor&, const Tensor&, int64_t, int64_t, int64_t);
using WeightsSignature = Tensor(const Tensor&, const Tensor&, bool, double);
using WeightsBackward = Tensor(const Tensor&, const Tensor&, const Tensor&, bool, double);
using BalanceSignature = Tensor(const Tensor&, const Tensor&, const Tensor&);
using BalanceBackward = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&);

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

template <class Work>
void for_rows(int64_t rows, const Work& work) {
  constexpr int64_t kBlock = 64;
  parallel_for((rows + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) work(row);
  });
}

Tensor route_cpu(const Tensor& logits_in, const Tensor& bias_in, int64_t n_group, int64_t topk_group, int64_t k) {
  auto logits = logits_in.contiguous(), bias = bias_in.contiguous();
  int64_t rows = logits.size(0), experts = logits.size(1);
  FULGUR_CHECK(n_group > 0 && experts % n_group == 0, "[router] expected groups that divide ", experts, " experts, got ",
               n_group);
  FULGUR_CHECK(topk_group > 0 && topk_group <= n_group && k > 0 && k <= topk_group * (experts / n_group),
               "[router] expected at most ", topk_group * (experts / n_group), " experts a token, got ", k);
  auto ids = at::empty({rows, k}, logits.options().dtype(at::kInt));
  RouteParams params{
      logits.const_data_ptr<float>(), bias.const_data_ptr<float>(), ids.mutable_data_ptr<int>(), experts, n_group, topk_group, k};
  auto kernel = FULGUR_CALL(route_row);
  for_rows(rows, [&](int64_t row) { kernel(params, row); });
  return ids;
}

Tensor route_meta(const Tensor& logits, const Tensor&, int64_t, int64_t, int64_t k) {
  return at::empty_symint({logits.sym_size(0), k}, logits.options().dtype(at::kInt));
}

void check_ids(const Tensor& ids, int64_t experts) {
  const int* id = ids.const_data_ptr<int>();
  for (int64_t i = 0; i < ids.numel(); ++i)
    FULGUR_CHECK(id[i] >= 0 && id[i] < experts, "[router] expected expert ids below ", experts, ", got ", id[i]);
}

Tensor weights_cpu(const Tensor& logits_in, const Tensor& ids_in, bool normalise, double scale) {
  auto logits = logits_in.contiguous(), ids = ids_in.contiguous();
  int64_t rows = logits.size(0), experts = logits.size(1), k = ids.size(1);
  check_ids(ids, experts);
  auto weights = at::empty({rows, k}, logits.options());
  const float* x = logits.const_data_ptr<float>();
  const int* id = ids.const_data_ptr<int>();
  float* out = weights.mutable_data_ptr<float>();
  for_rows(rows, [&](int64_t row) {
    float total = 0;
    for (int64_t i = row * k; i < (row + 1) * k; ++i) total += out[i] = sigmoid(x[row * experts + id[i]]);
    for (int64_t i = row * k; i < (row + 1) * k; ++i) out[i] = (normalise ? out[i] / total : out[i]) * float(scale);
  });
  return weights;
}

Tensor weights_meta(const Tensor& logits, const Tensor& ids, bool, double) {
  return at::empty_symint(ids.sym_sizes(), logits.options());
}

Tensor weights_backward_cpu(const Tensor& dweights_in, const Tensor& logits_in, const Tensor& ids_in, bool normalise,
                            double scale) {
  auto dweights = dweights_in.contiguous(), logits = logits_in.contiguous(), ids = ids_in.contiguous();
  int64_t rows = logits.size(0), experts = logits.size(1), k = ids.size(1);
  auto dlogits = at::zeros(logits.sizes(), logits.options());
  const float* x = logits.const_data_ptr<float>();
  const float* dw = dweights.const_data_ptr<float>();
  const int* id = ids.const_data_ptr<int>();
  float* dx = dlogits.mutable_data_ptr<float>();
  for_rows(rows, [&](int64_t row) {
    float total = 0, along = 0;
    for (int64_t i = row * k; i < (row + 1) * k; ++i) {
      float s = sigmoid(x[row * experts + id[i]]);
      total += s, along += s * dw[i];
    }
    for (int64_t i = row * k; i < (row + 1) * k; ++i) {
      float s = sigmoid(x[row * experts + id[i]]);
      float ds = normalise ? (dw[i] - along / total) / total : dw[i];
      dx[row * experts + id[i]] += ds * float(scale) * s * (1 - s);
    }
  });
  return dlogits;
}

Tensor weights_backward_meta(const Tensor&, const Tensor& logits, const Tensor&, bool, double) {
  return at::empty_symint(logits.sym_sizes(), logits.options());
}

// ---- sequence-wise balance loss ----

struct Sequence {
  int64_t first, rows;
};

std::vector<Sequence> sequences(const Tensor& starts_in, int64_t rows) {
  auto starts = starts_in.to(at::kInt).contiguous();
  const int* at = starts.const_data_ptr<int>();
  std::vector<Sequence> out;
  for (int64_t i = 0; i + 1 < starts.size(0); ++i) {
    FULGUR_CHECK(at[i] >= 0 && at[i] < at[i + 1] && at[i + 1] <= rows, "[router] expected ascending sequence starts within ",
                 rows, " rows, got ", at[i], " then ", at[i + 1]);
    out.push_back({at[i], at[i + 1] - at[i]});
  }
  return out;
}

// f_e of each sequence, [sequences, E]: E/(k T) times the tokens that chose e.
std::vector<float> load_fractions(const Tensor& ids, const std::vector<Sequence>& parts, int64_t experts) {
  std::vector<float> fractions(parts.size() * experts);
  const int* id = ids.const_data_ptr<int>();
  int64_t k = ids.size(1);
  parallel_for(int64_t(parts.size()), [&](int64_t i) {
    float* fraction = fractions.data() + i * experts;
    for (int64_t j = parts[i].first * k; j < (parts[i].first + parts[i].rows) * k; ++j) fraction[id[j]] += 1;
    for (int64_t e = 0; e < experts; ++e) fraction[e] *= float(double(experts) / double(k * parts[i].rows));
  });
  return fractions;
}

// work(row, sequence) for the rows of all sequences.
template <class Work>
void for_sequence_rows(const std::vector<Sequence>& parts, const Work& work) {
  if (parts.empty()) return;
  int64_t first = parts.front().first, last = parts.back().first + parts.back().rows;
  for_rows(last - first, [&](int64_t i) {
    auto after = std::upper_bound(parts.begin(), parts.end(), first + i, [](int64_t row, auto& s) { return row < s.first; });
    work(first + i, after - parts.begin() - 1);
  });
}

Tensor balance_cpu(const Tensor& logits_in, const Tensor& ids_in, const Tensor& starts) {
  auto logits = logits_in.contiguous(), ids = ids_in.contiguous();
  int64_t experts = logits.size(1);
  auto parts = sequences(starts, logits.size(0));
  auto fractions = load_fractions(ids, parts, experts);
  auto losses = at::empty({int64_t(parts.size())}, logits.options());
  std::vector<float> row_loss(logits.size(0));
  const float* x = logits.const_data_ptr<float>();
  auto kernel = FULGUR_CALL(balance_row);
  for_sequence_rows(
      parts, [&](int64_t row, int64_t i) { row_loss[row] = kernel(x + row * experts, fractions.data() + i * experts, experts); });
  for (size_t i = 0; i < parts.size(); ++i) {
    auto first = row_loss.begin() + parts[i].first;
    losses.mutable_data_ptr<float>()[i] = float(std::accumulate(first, first + parts[i].rows, 0.0) / double(parts[i].rows));
  }
  return losses;
}

Tensor balance_meta(const Tensor& logits, const Tensor&, const Tensor& starts) {
  return at::empty_symint({starts.sym_size(0) - 1}, logits.options());
}

Tensor balance_backward_cpu(const Tensor& dlosses_in, const Tensor& logits_in, const Tensor& ids_in, const Tensor& starts) {
  auto dlosses = dlosses_in.contiguous(), logits = logits_in.contiguous(), ids = ids_in.contiguous();
  int64_t experts = logits.size(1);
  auto parts = sequences(starts, logits.size(0));
  auto fractions = load_fractions(ids, parts, experts);
  auto dlogits = at::zeros(logits.sizes(), logits.options());
  const float* x = logits.const_data_ptr<float>();
  const float* dl = dlosses.const_data_ptr<float>();
  float* dx = dlogits.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(balance_backward_row);
  for_sequence_rows(parts, [&](int64_t row, int64_t i) {
    float unit = dl[i] / float(parts[i].rows);
    kernel(x + row * experts, fractions.data() + i * experts, experts, unit, dx + row * experts);
  });
  return dlogits;
}

Tensor balance_backward_meta(const Tensor&, const Tensor& logits, const Tensor&, const Tensor&) {
  return at::empty_symint(logits.sym_sizes(), logits.options());
}

struct WeightsFunction : torch::autograd::Function<WeightsFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& ids, bool normalise, double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits, ids});
    ctx->saved_data["normalise"] = normalise;
    ctx->saved_data["scale"] = scale;
    return route_weights(logits, ids, normalise, scale);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<WeightsBackward>("route_weights_backward");
    auto saved = ctx->get_saved_variables();
    auto dlogits =
        op.call(grads[0], saved[0], saved[1], ctx->saved_data["normalise"].toBool(), ctx->saved_data["scale"].toDouble());
    return {dlogits, Tensor(), Tensor(), Tensor()};
  }
};

struct BalanceFunction : torch::autograd::Function<BalanceFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& logits, const Tensor& ids, const Tensor& starts) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({logits, ids, starts});
    return balance_loss(logits, ids, starts);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<BalanceBackward>("balance_loss_backward");
    auto saved = ctx->get_saved_variables();
    return {op.call(grads[0], saved[0], saved[1], saved[2]), Tensor(), Tensor()};
  }
};

Tensor weights_autograd(const Tensor& logits, const Tensor& ids, bool normalise, double scale) {
  return WeightsFunction::apply(logits, ids, normalise, scale);
}
Tensor balance_autograd(const Tensor& logits, const Tensor& ids, const Tensor& starts) {
  return BalanceFunction::apply(logits, ids, starts);
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("route(Tensor logits, Tensor bias, int n_group, int topk_group, int experts_per_token) -> Tensor");
  m.def("route_weights(Tensor logits, Tensor ids, bool normalise, float scale) -> Tensor");
  m.def("route_weights_backward(Tensor dweights, Tensor logits, Tensor ids, bool normalise, float scale) -> Tensor");
  m.def("balance_loss(Tensor logits, Tensor ids, Tensor starts) -> Tensor");
  m.def("balance_loss_backward(Tensor dlosses, Tensor logits, Tensor ids, Tensor starts) -> Tensor");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("route", route_cpu);
  m.impl("route_weights", weights_cpu);
  m.impl("route_weights_backward", weights_backward_cpu);
  m.impl("balance_loss", balance_cpu);
  m.impl("balance_loss_backward", balance_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("route", route_meta);
  m.impl("route_weights", weights_meta);
  m.impl("route_weights_backward", weights_backward_meta);
  m.impl("balance_loss", balance_meta);
  m.impl("balance_loss_backward", balance_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) {
  m.impl("route_weights", weights_autograd);
  m.impl("balance_loss", balance_autograd);
}

}  // namespace

Tensor route(const Tensor& logits_NE, const Tensor& bias_E, const RouterShape& shape) {
  static const auto op = typed<RouteSignature>("route");
  return op.call(logits_NE.detach(), bias_E, shape.n_group, shape.topk_group, shape.experts_per_token);
}

Tensor route_weights(const Tensor& logits_NE, const Tensor& ids_Nk, bool normalise, double scale) {
  static const auto op = typed<WeightsSignature>("route_weights");
  return op.call(logits_NE, ids_Nk, normalise, scale);
}

Tensor balance_loss(const Tensor& logits_NE, const Tensor& ids_Nk, const Tensor& starts) {
  static const auto op = typed<BalanceSignature>("balance_loss");
  return op.call(logits_NE, ids_Nk, starts);
}

}  // namespace fulgur::ops
