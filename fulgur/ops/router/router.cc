#include "fulgur/ops/router/router.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fulgur/ops/op.h"

// A few hundred numbers a token: plain loops, each row (or sequence) one piece of work, no vector code needed.
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
  constexpr int64_t kBlock = 256;
  parallel_for((rows + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) work(row);
  });
}

// Indices of the `count` largest of values, larger first, ties to the smaller index, into `out`.
void best(const float* values, int64_t size, int64_t count, std::vector<int>& out) {
  out.resize(size);
  std::iota(out.begin(), out.end(), 0);
  std::partial_sort(out.begin(), out.begin() + count, out.end(),
                    [&](int a, int b) { return values[a] > values[b] || (values[a] == values[b] && a < b); });
  out.resize(count);
}

void route_row(const float* logits, const float* bias, int64_t experts, int64_t n_group, int64_t topk_group, int64_t k,
               int* ids) {
  static thread_local std::vector<float> biased, group_score;
  static thread_local std::vector<int> kept, chosen;
  biased.resize(experts), group_score.resize(n_group);
  int64_t size = experts / n_group;
  for (int64_t e = 0; e < experts; ++e) biased[e] = sigmoid(logits[e]) + bias[e];
  for (int64_t g = 0; g < n_group; ++g) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      if (biased[e] > first) second = first, first = biased[e];
      else if (biased[e] > second) second = biased[e];
    }
    group_score[g] = size > 1 ? first + second : first;
  }
  best(group_score.data(), n_group, topk_group, kept);
  std::vector<bool> open(n_group);
  for (int g : kept) open[g] = true;
  for (int64_t e = 0; e < experts; ++e)
    if (!open[e / size]) biased[e] = -INFINITY;
  best(biased.data(), experts, k, chosen);
  std::sort(chosen.begin(), chosen.end());
  std::copy(chosen.begin(), chosen.end(), ids);
}

Tensor route_cpu(const Tensor& logits_in, const Tensor& bias_in, int64_t n_group, int64_t topk_group, int64_t k) {
  auto logits = logits_in.contiguous(), bias = bias_in.contiguous();
  int64_t rows = logits.size(0), experts = logits.size(1);
  FULGUR_CHECK(n_group > 0 && experts % n_group == 0, "[router] expected groups that divide ", experts, " experts, got ",
               n_group);
  FULGUR_CHECK(topk_group > 0 && topk_group <= n_group && k > 0 && k <= topk_group * (experts / n_group),
               "[router] expected at most ", topk_group * (experts / n_group), " experts a token, got ", k);
  auto ids = at::empty({rows, k}, logits.options().dtype(at::kInt));
  const float* x = logits.const_data_ptr<float>();
  const float* b = bias.const_data_ptr<float>();
  int* out = ids.mutable_data_ptr<int>();
  for_rows(rows, [&](int64_t row) { route_row(x + row * experts, b, experts, n_group, topk_group, k, out + row * k); });
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

// f_e of one sequence: E/(k T) times the tokens that chose e.
std::vector<float> load_fraction(const int* ids, const Sequence& s, int64_t experts, int64_t k) {
  std::vector<float> fraction(experts);
  for (int64_t i = s.first * k; i < (s.first + s.rows) * k; ++i) fraction[ids[i]] += 1;
  for (float& f : fraction) f *= float(double(experts) / double(k * s.rows));
  return fraction;
}

Tensor balance_cpu(const Tensor& logits_in, const Tensor& ids_in, const Tensor& starts) {
  auto logits = logits_in.contiguous(), ids = ids_in.contiguous();
  int64_t experts = logits.size(1), k = ids.size(1);
  auto parts = sequences(starts, logits.size(0));
  auto losses = at::empty({int64_t(parts.size())}, logits.options());
  const float* x = logits.const_data_ptr<float>();
  float* out = losses.mutable_data_ptr<float>();
  parallel_for(int64_t(parts.size()), [&](int64_t i) {
    auto fraction = load_fraction(ids.const_data_ptr<int>(), parts[i], experts, k);
    double loss = 0;
    for (int64_t row = parts[i].first; row < parts[i].first + parts[i].rows; ++row) {
      float total = 0, weighted = 0;
      for (int64_t e = 0; e < experts; ++e) {
        float s = sigmoid(x[row * experts + e]);
        total += s, weighted += s * fraction[e];
      }
      loss += weighted / total;
    }
    out[i] = float(loss / double(parts[i].rows));
  });
  return losses;
}

Tensor balance_meta(const Tensor& logits, const Tensor&, const Tensor& starts) {
  return at::empty_symint({starts.sym_size(0) - 1}, logits.options());
}

Tensor balance_backward_cpu(const Tensor& dlosses_in, const Tensor& logits_in, const Tensor& ids_in, const Tensor& starts) {
  auto dlosses = dlosses_in.contiguous(), logits = logits_in.contiguous(), ids = ids_in.contiguous();
  int64_t experts = logits.size(1), k = ids.size(1);
  auto parts = sequences(starts, logits.size(0));
  auto dlogits = at::zeros(logits.sizes(), logits.options());
  const float* x = logits.const_data_ptr<float>();
  const float* dl = dlosses.const_data_ptr<float>();
  float* dx = dlogits.mutable_data_ptr<float>();
  parallel_for(int64_t(parts.size()), [&](int64_t i) {
    auto fraction = load_fraction(ids.const_data_ptr<int>(), parts[i], experts, k);
    float unit = dl[i] / float(parts[i].rows);
    std::vector<float> s(experts);
    for (int64_t row = parts[i].first; row < parts[i].first + parts[i].rows; ++row) {
      float total = 0, weighted = 0;
      for (int64_t e = 0; e < experts; ++e) {
        s[e] = sigmoid(x[row * experts + e]);
        total += s[e], weighted += s[e] * fraction[e];
      }
      for (int64_t e = 0; e < experts; ++e)
        dx[row * experts + e] = unit * (fraction[e] - weighted / total) / total * s[e] * (1 - s[e]);
    }
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
