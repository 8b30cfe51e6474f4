#include "fulgur/ops/linear/linear.h"

#include "fulgur/ops/linear/weight.h"

namespace fulgur::ops {
namespace {

using Two = Tensor(const Tensor&, const Tensor&);
using Backward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, bool, bool);

bool rounds(const Tensor& x, const Tensor& weight) {
  return x.scalar_type() == at::kBFloat16 && weight.scalar_type() == at::kFloat;
}

void check_linear(const Tensor& x, const Weight& weight) {
  FULGUR_CHECK(weight.valid(), "[linear] expected a weight [outputs, inputs], or packed, got ", weight.tensor.sizes());
  FULGUR_CHECK(x.dim() >= 1 && x.size(-1) == weight.inputs(), "[linear] expected rows of ", weight.inputs(), ", got ", x.sizes());
}

std::vector<int64_t> with_last(const Tensor& x, int64_t size) {
  auto sizes = x.sizes().vec();
  sizes.back() = size;
  return sizes;
}

Tensor linear_meta(const Tensor& x, const Tensor& weight) {
  auto sizes = x.sym_sizes().vec();
  sizes.back() = weight.dim() == 3 ? weight.sym_size(0) * kPanel : weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

Tensor linear_cpu(const Tensor& x, const Tensor& weight) {
  Weight w{weight, 0};
  check_linear(x, w);
  auto rows = x.contiguous();
  auto y = at::empty(with_last(x, w.outputs()), x.options());
  GemmParams p = w.product(x, "linear");
  Rows a(rows, w, "linear");
  a.give(p);
  p.c = y.mutable_data_ptr();
  p.M = p.K == 0 ? 0 : rows.numel() / p.K;
  p.c_row = p.N, p.c_type = p.a_type;
  gemm(p);
  return y;
}

std::tuple<Tensor, Tensor> linear_backward_meta(const Tensor&, const Tensor& x, const Tensor& weight, bool, bool) {
  return {at::empty_symint(x.sym_sizes(), x.options()), at::empty_symint(weight.sym_sizes(), weight.options())};
}

// dx = dy * W; dW = dy^T * x, reduced over rows in ascending order. What is not wanted comes back unwritten.
std::tuple<Tensor, Tensor> linear_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight, bool want_x,
                                               bool want_weight) {
  check_plain(weight, 2, "linear");
  auto rows = x.contiguous(), grad = dy.contiguous();
  auto dx = at::empty(x.sizes(), x.options());
  auto dw = at::empty(weight.sizes(), weight.options());
  int64_t N = weight.size(0), K = weight.size(1), M = rows.numel() / std::max<int64_t>(K, 1);
  auto x_type = storage(x, "linear"), w_type = storage(weight, "linear");
  std::vector<GemmParams> products;
  if (want_x)
    products.push_back({.a = grad.const_data_ptr(),
                        .b = weight.const_data_ptr(),
                        .c = dx.mutable_data_ptr(),
                        .M = M,
                        .N = K,
                        .K = N,
                        .a_row = N,
                        .a_col = 1,
                        .b_row = weight.stride(0),
                        .b_col = weight.stride(1),
                        .c_row = K,
                        .a_type = x_type,
                        .b_type = w_type,
                        .c_type = x_type,
                        .round_b_to_bf16 = rounds(x, weight)});
  if (want_weight)
    products.push_back({.a = grad.const_data_ptr(),
                        .b = rows.const_data_ptr(),
                        .c = dw.mutable_data_ptr(),
                        .M = N,
                        .N = K,
                        .K = M,
                        .a_row = 1,
                        .a_col = N,
                        .b_row = K,
                        .b_col = 1,
                        .c_row = K,
                        .a_type = x_type,
                        .b_type = x_type,
                        .c_type = w_type});
  gemm(products);
  return {dx, dw};
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight});
    return ops::linear(x, weight);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("linear_backward");
    auto saved = ctx->get_saved_variables();
    bool want_x = ctx->needs_input_grad(0), want_weight = ctx->needs_input_grad(1);
    auto [dx, dw] = op.call(grads[0], saved[0], saved[1], want_x, want_weight);
    return {want_x ? dx : Tensor(), want_weight ? dw : Tensor()};
  }
};

Tensor linear_autograd(const Tensor& x, const Tensor& weight) { return LinearFunction::apply(x, weight); }

// ---- one weight for each head ----

// As [heads, outputs, inputs], which is what packing takes.
struct HeadWeight {
  Tensor turned;
  explicit HeadWeight(const Tensor& weight) : turned(weight.dim() == 3 ? weight.transpose(1, 2) : weight) {}
  Weight get() const { return {turned, 1}; }
};

void check_heads(const Tensor& x, const Weight& w) {
  FULGUR_CHECK(x.dim() == 3 && w.valid() && x.size(1) == w.tensor.size(0) && x.size(2) == w.inputs(),
               "[head_linear] expected rows [N, heads, inputs] and weights [heads, inputs, outputs], or packed, got ", x.sizes(),
               " and ", w.tensor.sizes());
}

Tensor head_linear_meta(const Tensor& x, const Tensor& weight) {
  auto outputs = weight.dim() == 4 ? weight.sym_size(1) * kPanel : weight.sym_size(2);
  return at::empty_symint({x.sym_size(0), x.sym_size(1), outputs}, x.options());
}

const char* at_head(const Tensor& tensor, int64_t offset) {
  return static_cast<const char*>(tensor.const_data_ptr()) + offset * tensor.element_size();
}

Tensor head_linear_cpu(const Tensor& x, const Tensor& weight) {
  HeadWeight turned(weight);
  Weight w = turned.get();
  check_heads(x, w);
  auto rows = x.contiguous();
  int64_t N = x.size(0), H = x.size(1), O = w.outputs();
  auto y = at::empty({N, H, O}, x.options());
  Rows a(rows, w, "head_linear");
  std::vector<GemmParams> products;
  for (int64_t h = 0; h < H; ++h) {
    GemmParams& p = products.emplace_back(w.product(x, "head_linear", h));
    a.give(p, h, H);
    p.c = const_cast<char*>(at_head(y, h * O));
    p.M = N, p.c_row = H * O, p.c_type = p.a_type;
  }
  gemm(products);
  return y;
}

std::tuple<Tensor, Tensor> head_linear_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight, bool want_x,
                                                    bool want_weight) {
  check_plain(weight, 3, "head_linear");
  auto rows = x.contiguous(), grad = dy.contiguous();
  int64_t N = x.size(0), H = x.size(1), I = x.size(2), O = weight.size(2);
  auto dx = at::empty({N, H, I}, x.options());
  auto dw = at::empty({H, I, O}, weight.options());
  auto x_type = storage(x, "head_linear"), w_type = storage(weight, "head_linear");
  std::vector<GemmParams> products;
  for (int64_t h = 0; h < H; ++h) {
    if (want_x)
      products.push_back({.a = at_head(grad, h * O),
                          .b = at_head(weight, h * weight.stride(0)),
                          .c = const_cast<char*>(at_head(dx, h * I)),
                          .M = N,
                          .N = I,
                          .K = O,
                          .a_row = H * O,
                          .a_col = 1,
                          .b_row = weight.stride(2),
                          .b_col = weight.stride(1),
                          .c_row = H * I,
                          .a_type = x_type,
                          .b_type = w_type,
                          .c_type = x_type,
                          .round_b_to_bf16 = rounds(x, weight)});
    if (want_weight)
      products.push_back({.a = at_head(rows, h * I),
                          .b = at_head(grad, h * O),
                          .c = const_cast<char*>(at_head(dw, h * I * O)),
                          .M = I,
                          .N = O,
                          .K = N,
                          .a_row = 1,
                          .a_col = H * I,
                          .b_row = H * O,
                          .b_col = 1,
                          .c_row = O,
                          .a_type = x_type,
                          .b_type = x_type,
                          .c_type = w_type});
  }
  gemm(products);
  return {dx, dw};
}

struct HeadLinearFunction : torch::autograd::Function<HeadLinearFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& weight) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({x, weight});
    return ops::head_linear(x, weight);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("head_linear_backward");
    auto saved = ctx->get_saved_variables();
    bool want_x = ctx->needs_input_grad(0), want_weight = ctx->needs_input_grad(1);
    auto [dx, dw] = op.call(grads[0], saved[0], saved[1], want_x, want_weight);
    return {want_x ? dx : Tensor(), want_weight ? dw : Tensor()};
  }
};

Tensor head_linear_autograd(const Tensor& x, const Tensor& weight) { return HeadLinearFunction::apply(x, weight); }

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("linear(Tensor x, Tensor weight) -> Tensor");
  m.def("linear_backward(Tensor dy, Tensor x, Tensor weight, bool want_x, bool want_weight) -> (Tensor, Tensor)");
  m.def("head_linear(Tensor x, Tensor weight) -> Tensor");
  m.def("head_linear_backward(Tensor dy, Tensor x, Tensor weight, bool want_x, bool want_weight) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("linear", linear_cpu);
  m.impl("linear_backward", linear_backward_cpu);
  m.impl("head_linear", head_linear_cpu);
  m.impl("head_linear_backward", head_linear_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("linear", linear_meta);
  m.impl("linear_backward", linear_backward_meta);
  m.impl("head_linear", head_linear_meta);
  m.impl("head_linear_backward", linear_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) {
  m.impl("linear", linear_autograd);
  m.impl("head_linear", head_linear_autograd);
}

}  // namespace

Tensor linear(const Tensor& x, const Tensor& weight) {
  static const auto op = typed<Two>("linear");
  return op.call(x, weight);
}

Tensor head_linear(const Tensor& x, const Tensor& weight) {
  static const auto op = typed<Two>("head_linear");
  return op.call(x, weight);
}

}  // namespace fulgur::ops
