#include "fulgur/ops/log_prob/log_prob.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>

#include "fulgur/ops/log_prob/head.h"
#include "fulgur/ops/log_prob/kernels.h"

namespace fulgur::ops {
namespace {

using LogitsSignature = Tensor(const Tensor&, const Tensor&);
using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&);
// {result, lse, dx, dweight}, the gradients f32, of sum(dresult * result).
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Backward = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&);

Tensor logits_cpu(const Tensor& x_in, const Tensor& weight_in) {
  auto x = x_in.contiguous(), weight = weight_in.contiguous();
  Weight w{weight, 0};
  check_head(x, weight);
  auto out = at::empty({x.size(0), w.outputs()}, x.options().dtype(at::kFloat));
  logits_into(Rows(x, w, "log_prob"), 0, x.size(0), weight, out.mutable_data_ptr<float>());
  return out;
}

Tensor logits_meta(const Tensor& x, const Tensor& weight) {
  auto outputs = weight.dim() == 3 ? weight.sym_size(0) * kPanel : weight.sym_size(0);
  return at::empty_symint({x.sym_size(0), outputs}, x.options().dtype(at::kFloat));
}

// Rows [first, first + rows) of a chunk: log-probability of the target and log of the sum of exponentials.
void row_results(const float* logits, const int* target, int64_t rows, int64_t V, float* result, float* lse) {
  auto kernel = FULGUR_CALL(log_sum_exp);
  parallel_for(rows, [&](int64_t i) {
    lse[i] = kernel(logits + i * V, V);
    result[i] = target[i] < 0 ? 0 : logits[i * V + target[i]] - lse[i];
  });
}

std::tuple<Tensor, Tensor> log_prob_cpu(const Tensor& x_in, const Tensor& weight_in, const Tensor& targets_in) {
  check_head(x_in, weight_in);
  auto x = x_in.contiguous(), weight = weight_in.contiguous(), targets = targets_in.to(at::kInt).contiguous();
  Weight w{weight, 0};
  int64_t N = x.size(0), V = w.outputs();
  check_targets(targets, N, V);
  Rows a(x, w, "log_prob");
  auto options = x.options().dtype(at::kFloat);
  auto result = at::empty({N}, options), lse = at::empty({N}, options), chunk = at::empty({std::min(N, kChunk), V}, options);
  float* logits = chunk.mutable_data_ptr<float>();
  for (int64_t first = 0; first < N; first += kChunk) {
    int64_t rows = std::min(kChunk, N - first);
    logits_into(a, first, rows, weight, logits);
    row_results(logits, targets.const_data_ptr<int>() + first, rows, V, result.mutable_data_ptr<float>() + first,
                lse.mutable_data_ptr<float>() + first);
  }
  return {result, lse};
}

std::tuple<Tensor, Tensor> log_prob_meta(const Tensor& x, const Tensor&, const Tensor&) {
  auto options = x.options().dtype(at::kFloat);
  return {at::empty_symint({x.sym_size(0)}, options), at::empty_symint({x.sym_size(0)}, options)};
}

Gradients log_prob_backward_cpu(const Tensor& dresult_in, const Tensor& x_in, const Tensor& weight_in, const Tensor& targets_in) {
  check_head(x_in, weight_in);
  check_plain(weight_in, 2, "log_prob");
  auto x = x_in.contiguous(), weight = weight_in.contiguous(), targets = targets_in.to(at::kInt).contiguous();
  auto dresult = dresult_in.contiguous();
  int64_t N = x.size(0), V = weight.size(0);
  check_targets(targets, N, V);
  auto options = x.options().dtype(at::kFloat);
  auto result = at::empty({N}, options), lse = at::empty({N}, options);
  auto dx = at::empty(x.sizes(), options), dweight = at::zeros(weight.sizes(), options);
  auto chunk = at::empty({std::min(N, kChunk), V}, options);
  float* logits = chunk.mutable_data_ptr<float>();
  const int* target = targets.const_data_ptr<int>();
  const float* scale = dresult.const_data_ptr<float>();
  float *total = lse.mutable_data_ptr<float>(), *log_probs = result.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(log_prob_gradient);
  for (int64_t first = 0; first < N; first += kChunk) {
    int64_t rows = std::min(kChunk, N - first);
    logits_into(Rows(x), first, rows, weight, logits);
    parallel_for(rows, [&](int64_t i) {
      float* row = logits + i * V;
      int64_t at = first + i;
      float logit = target[at] < 0 ? 0 : row[target[at]];
      total[at] = kernel(row, V, target[at], scale[at]);
      log_probs[at] = target[at] < 0 ? 0 : logit - total[at];
    });
    add_products(chunk, x, weight, first, rows, dx, dweight);
  }
  return {result, lse, dx, dweight};
}

Gradients log_prob_backward_meta(const Tensor&, const Tensor& x, const Tensor& weight, const Tensor& targets) {
  auto [result, lse] = log_prob_meta(x, weight, targets);
  auto options = x.options().dtype(at::kFloat);
  return {result, lse, at::empty_symint(x.sym_sizes(), options), at::empty_symint(weight.sym_sizes(), options)};
}

// Where a gradient is wanted, the logits are turned into that of the rows' sum while they are there.
struct LogProbFunction : torch::autograd::Function<LogProbFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight, const Tensor& targets, bool wanted) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto forward_op = typed<Forward>("log_prob");
    static const auto op = typed<Backward>("log_prob_backward");
    Tensor result, lse;
    if (wanted) {
      auto ones = at::ones_symint({x.sym_size(0)}, x.options().dtype(at::kFloat));
      auto [value, total, dx, dweight] = op.call(ones, x, weight, targets);
      ctx->save_for_backward({x, weight, targets, dx, dweight});
      result = value, lse = total;
    } else std::tie(result, lse) = forward_op.call(x, weight, targets);
    ctx->mark_non_differentiable({lse});
    ctx->set_materialize_grads(false);  // no zeros for outputs without one
    return {result, lse};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("log_prob_backward");
    auto s = ctx->get_saved_variables();
    auto x_type = s[0].scalar_type(), w_type = s[1].scalar_type();
    if (equal_weights(grads[0])) {
      auto weight = grads[0].select(0, 0);
      return {(s[3] * weight).to(x_type), (s[4] * weight).to(w_type), Tensor(), Tensor()};
    }
    auto made = op.call(grads[0], s[0], s[1], s[2]);
    return {std::get<2>(made).to(x_type), std::get<3>(made).to(w_type), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> log_prob_autograd(const Tensor& x, const Tensor& weight, const Tensor& targets) {
  bool wanted = at::GradMode::is_enabled() && (x.requires_grad() || weight.requires_grad());
  auto out = LogProbFunction::apply(x, weight, targets, wanted);
  return {out[0], out[1]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("logits(Tensor x, Tensor weight) -> Tensor");
  m.def("log_prob(Tensor x, Tensor weight, Tensor targets) -> (Tensor, Tensor)");
  m.def("log_prob_backward(Tensor dresult, Tensor x, Tensor weight, Tensor targets) -> (Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("logits", logits_cpu);
  m.impl("log_prob", log_prob_cpu);
  m.impl("log_prob_backward", log_prob_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("logits", logits_meta);
  m.impl("log_prob", log_prob_meta);
  m.impl("log_prob_backward", log_prob_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("log_prob", log_prob_autograd); }

}  // namespace

Tensor logits(const Tensor& x_ND, const Tensor& weight_VD) {
  static const auto op = typed<LogitsSignature>("logits");
  return op.call(x_ND.detach(), weight_VD.detach());
}

float log_sum_exp(const float* logits, int64_t size) { return FULGUR_CALL(log_sum_exp)(logits, size); }

Tensor log_prob(const Tensor& x_ND, const Tensor& weight_VD, const Tensor& targets_N) {
  static const auto op = typed<Forward>("log_prob");
  return std::get<0>(op.call(x_ND, weight_VD, targets_N));
}

}  // namespace fulgur::ops
