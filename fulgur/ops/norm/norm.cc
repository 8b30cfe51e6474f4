#include "fulgur/ops/norm/norm.h"

#include "fulgur/ops/norm/kernels.h"
#include "fulgur/ops/op.h"

namespace fulgur::ops {
namespace {

using MaybeTensor = std::optional<Tensor>;
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const MaybeTensor&, const Tensor&, const MaybeTensor&,
                                                           double);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const MaybeTensor&, const Tensor&, const Tensor&,
                                                    const MaybeTensor&, const Tensor&);

const void* pointer(const MaybeTensor& tensor) { return tensor ? tensor->const_data_ptr() : nullptr; }

// A row alone is too little work for a task. Weight gradients are summed over a block, then over blocks, so its size
// stands in their bits.
constexpr int64_t kBlock = 32;

int64_t blocks(int64_t rows) { return (rows + kBlock - 1) / kBlock; }

// One op for the three forms: {y, sum, mean, rstd}; sum is empty without a residual, mean without a bias.
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_cpu(const Tensor& x_in, const MaybeTensor& residual_in, const Tensor& weight,
                                                    const MaybeTensor& bias, double eps) {
  FULGUR_CHECK(weight.dim() == 1 && x_in.size(-1) == weight.size(0), "[norm] expected rows of ", weight.sizes(), ", got ",
               x_in.sizes());
  FULGUR_CHECK(!residual_in || residual_in->sizes() == x_in.sizes(), "[norm] expected a residual of shape ", x_in.sizes(),
               ", got another");
  auto x = x_in.contiguous();
  auto residual = residual_in ? MaybeTensor(residual_in->contiguous()) : std::nullopt;
  int64_t D = weight.size(0), N = D == 0 ? 0 : x.numel() / D;
  auto y = at::empty(x.sizes(), x.options());
  auto sum = residual ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  auto statistics = x.options().dtype(at::kFloat);
  auto mean = at::empty({bias ? N : 0}, statistics), rstd = at::empty({N}, statistics);
  NormParams params{x.const_data_ptr(),
                    pointer(residual),
                    weight.const_data_ptr<float>(),
                    static_cast<const float*>(pointer(bias)),
                    y.mutable_data_ptr(),
                    residual ? sum.mutable_data_ptr() : nullptr,
                    mean.mutable_data_ptr<float>(),
                    rstd.mutable_data_ptr<float>(),
                    D,
                    float(eps),
                    storage(x, "norm")};
  auto kernel = FULGUR_CALL(norm_row);
  parallel_for(blocks(N), [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(N, (block + 1) * kBlock); ++row) kernel(params, row);
  });
  return {y, sum, mean, rstd};
}

c10::SymInt rows_of(const Tensor& x) {
  c10::SymInt rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows = rows * x.sym_size(i);
  return rows;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_meta(const Tensor& x, const MaybeTensor& residual, const Tensor&,
                                                     const MaybeTensor& bias, double) {
  auto statistics = x.options().dtype(at::kFloat);
  auto y = at::empty_symint(x.sym_sizes(), x.options());
  auto sum = residual ? at::empty_symint(x.sym_sizes(), x.options()) : at::empty({0}, x.options());
  auto mean = bias ? at::empty_symint({rows_of(x)}, statistics) : at::empty({0}, statistics);
  return {y, sum, mean, at::empty_symint({rows_of(x)}, statistics)};
}

// {dx, dweight, dbias}; dbias is empty for RMSNorm.
std::tuple<Tensor, Tensor, Tensor> norm_backward_cpu(const Tensor& dy_in, const MaybeTensor& dsum_in, const Tensor& x_in,
                                                     const Tensor& weight, const MaybeTensor& mean, const Tensor& rstd) {
  auto dy = dy_in.contiguous(), x = x_in.contiguous();
  auto dsum = dsum_in ? MaybeTensor(dsum_in->contiguous()) : std::nullopt;
  int64_t D = weight.size(0), N = D == 0 ? 0 : x.numel() / D;
  auto dx = at::empty(x.sizes(), x.options());
  auto dweight = at::empty(weight.sizes(), weight.options());
  auto dbias = at::empty({mean ? D : 0}, weight.options());
  NormBackwardParams params{dy.const_data_ptr(),
                            pointer(dsum),
                            x.const_data_ptr(),
                            weight.const_data_ptr<float>(),
                            static_cast<const float*>(pointer(mean)),
                            rstd.const_data_ptr<float>(),
                            dx.mutable_data_ptr(),
                            D,
                            storage(x, "norm")};
  auto row_kernel = FULGUR_CALL(norm_backward_row);
  auto parts = at::empty({mean ? 2 : 1, blocks(N), D}, weight.options());
  float *dweight_part = parts.mutable_data_ptr<float>(), *dbias_part = mean ? dweight_part + blocks(N) * D : nullptr;
  parallel_for(blocks(N), [&](int64_t block) {
    float *dw = dweight_part + block * D, *db = mean ? dbias_part + block * D : nullptr;
    std::fill(dw, dw + D, 0.0f);
    if (db) std::fill(db, db + D, 0.0f);
    for (int64_t row = block * kBlock; row < std::min(N, (block + 1) * kBlock); ++row) row_kernel(params, row, dw, db);
  });
  auto column_kernel = FULGUR_CALL(add_rows);
  constexpr int64_t kColumns = 256;
  parallel_for((D + kColumns - 1) / kColumns, [&](int64_t i) {
    int64_t first = i * kColumns, last = std::min(D, first + kColumns);
    column_kernel(dweight_part, blocks(N), D, dweight.mutable_data_ptr<float>(), first, last);
    if (mean) column_kernel(dbias_part, blocks(N), D, dbias.mutable_data_ptr<float>(), first, last);
  });
  return {dx, dweight, dbias};
}

std::tuple<Tensor, Tensor, Tensor> norm_backward_meta(const Tensor&, const MaybeTensor&, const Tensor& x, const Tensor& weight,
                                                      const MaybeTensor& mean, const Tensor&) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(weight.sym_sizes(), weight.options()),
          mean ? at::empty_symint(weight.sym_sizes(), weight.options()) : at::empty({0}, weight.options())};
}

struct NormFunction : torch::autograd::Function<NormFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                               const MaybeTensor& bias, double eps) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = typed<Forward>("norm");
    auto [y, sum, mean, rstd] = op.call(x, residual, weight, bias, eps);
    ctx->saved_data["has_residual"] = residual.has_value();
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->save_for_backward({residual ? sum : x, weight, mean, rstd});
    ctx->mark_non_differentiable(residual ? variable_list{mean, rstd} : variable_list{sum, mean, rstd});
    return {y, sum, mean, rstd};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("norm_backward");
    auto saved = ctx->get_saved_variables();
    bool has_residual = ctx->saved_data["has_residual"].toBool(), has_bias = ctx->saved_data["has_bias"].toBool();
    auto [dx, dweight, dbias] = op.call(grads[0], has_residual ? MaybeTensor(grads[1]) : std::nullopt, saved[0], saved[1],
                                        has_bias ? MaybeTensor(saved[2]) : std::nullopt, saved[3]);
    return {dx, has_residual ? dx : Tensor(), dweight, has_bias ? dbias : Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> norm_autograd(const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                                                         const MaybeTensor& bias, double eps) {
  auto out = NormFunction::apply(x, residual, weight, bias, eps);
  return {out[0], out[1], out[2], out[3]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("norm(Tensor x, Tensor? residual, Tensor weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "norm_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor weight, Tensor? mean, Tensor rstd)"
      " -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("norm", norm_cpu);
  m.impl("norm_backward", norm_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("norm", norm_meta);
  m.impl("norm_backward", norm_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("norm", norm_autograd); }

std::tuple<Tensor, Tensor, Tensor, Tensor> norm(const Tensor& x, const MaybeTensor& residual, const Tensor& weight,
                                                const MaybeTensor& bias, double eps) {
  static const auto op = typed<Forward>("norm");
  return op.call(x, residual, weight, bias, eps);
}

}  // namespace

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  return std::get<0>(norm(x, std::nullopt, weight, std::nullopt, eps));
}

std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  auto [y, sum, mean, rstd] = norm(x, residual, weight, std::nullopt, eps);
  return {y, sum};
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return std::get<0>(norm(x, std::nullopt, weight, bias, eps));
}

}  // namespace fulgur::ops
