#include "fulgur/ops/experts/experts.h"

#include "fulgur/ops/experts/kernels.h"
#include "fulgur/ops/linear/weight.h"

namespace fulgur::ops {
namespace {

using Two = Tensor(const Tensor&, const Tensor&);
using SwigluBackward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&);
using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                           const Tensor&, const Tensor&, const Tensor&);
using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                                    const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                                    const Tensor&, const Tensor&);

// Blocks are whole vectors of every instruction set, so an element's arithmetic never depends on the split.
void swiglu_all(const SwigluParams& params, int64_t size) {
  constexpr int64_t kBlock = 1 << 14;
  auto kernel = FULGUR_CALL(swiglu_block);
  parallel_for((size + kBlock - 1) / kBlock, [&](int64_t i) { kernel(params, i * kBlock, std::min(size, (i + 1) * kBlock)); });
}

Tensor swiglu_cpu(const Tensor& gate_in, const Tensor& up_in) {
  FULGUR_CHECK(gate_in.sizes() == up_in.sizes() && gate_in.scalar_type() == up_in.scalar_type(),
               "[swiglu] expected gate and up of one shape and type, got ", gate_in.sizes(), " and ", up_in.sizes());
  auto gate = gate_in.contiguous(), up = up_in.contiguous();
  auto y = at::empty(gate.sizes(), gate.options());
  swiglu_all({.gate = gate.const_data_ptr(),
              .up = up.const_data_ptr(),
              .dy = nullptr,
              .y = y.mutable_data_ptr(),
              .dgate = nullptr,
              .dup = nullptr,
              .type = storage(gate, "swiglu")},
             gate.numel());
  return y;
}

Tensor swiglu_meta(const Tensor& gate, const Tensor&) { return at::empty_symint(gate.sym_sizes(), gate.options()); }

std::tuple<Tensor, Tensor> swiglu_backward_cpu(const Tensor& dy_in, const Tensor& gate_in, const Tensor& up_in) {
  auto dy = dy_in.contiguous(), gate = gate_in.contiguous(), up = up_in.contiguous();
  auto dgate = at::empty(gate.sizes(), gate.options()), dup = at::empty(gate.sizes(), gate.options());
  swiglu_all({.gate = gate.const_data_ptr(),
              .up = up.const_data_ptr(),
              .dy = dy.const_data_ptr(),
              .y = nullptr,
              .dgate = dgate.mutable_data_ptr(),
              .dup = dup.mutable_data_ptr(),
              .type = storage(gate, "swiglu")},
             gate.numel());
  return {dgate, dup};
}

std::tuple<Tensor, Tensor> swiglu_backward_meta(const Tensor&, const Tensor& gate, const Tensor& up) {
  return {at::empty_symint(gate.sym_sizes(), gate.options()), at::empty_symint(up.sym_sizes(), up.options())};
}

// ---- experts ----

// Tokens grouped by expert, each group in token order: a counting sort.
struct Grouping {
  std::vector<int64_t> start;  // [E + 1] rows of an expert
  std::vector<int32_t> token;  // [N * k] token of a row
  std::vector<int32_t> place;  // [N, k] row of a token's i-th expert
};

Grouping group(const Tensor& ids_Nk, int64_t experts) {
  auto ids = ids_Nk.contiguous();
  const int* id = ids.const_data_ptr<int>();
  int64_t pairs = ids.numel(), k = ids.size(1);
  Grouping out{std::vector<int64_t>(experts + 1), std::vector<int32_t>(pairs), std::vector<int32_t>(pairs)};
  for (int64_t i = 0; i < pairs; ++i) {
    FULGUR_CHECK(id[i] >= 0 && id[i] < experts, "[experts] expected ids below ", experts, ", got ", id[i]);
    ++out.start[id[i] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) out.start[e + 1] += out.start[e];
  std::vector<int64_t> next(out.start.begin(), out.start.end() - 1);
  for (int64_t i = 0; i < pairs; ++i) {
    int32_t row = int32_t(next[id[i]]++);
    out.token[row] = int32_t(i / k), out.place[i] = row;
  }
  return out;
}

Tensor gather(const Tensor& x, const std::vector<int32_t>& token) {
  auto rows = at::empty({int64_t(token.size()), x.size(1)}, x.options());
  size_t bytes = x.size(1) * x.element_size();
  auto* from = static_cast<const char*>(x.const_data_ptr());
  auto* to = static_cast<char*>(rows.mutable_data_ptr());
  constexpr int64_t kBlock = 256;
  int64_t count = int64_t(token.size());
  parallel_for((count + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t i = block * kBlock; i < std::min(count, (block + 1) * kBlock); ++i)
      std::memcpy(to + i * bytes, from + token[i] * bytes, bytes);
  });
  return rows;
}

template <class T>
T* at_row(T* base, int64_t offset, Storage type) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(base) + offset * (type == Storage::f32 ? 4 : 2);
}

// y[rows of e] = x[rows of e] * W_e^T, W [E, out, in].
void append_products(std::vector<GemmParams>& products, const Grouping& g, const Rows& x, const Tensor& weight, Tensor& y,
                     bool accumulate = false) {
  Weight w{weight, 1};
  auto y_type = storage(y, "experts");
  for (int64_t e = 0; e < weight.size(0); ++e) {
    int64_t first = g.start[e], rows = g.start[e + 1] - first;
    if (rows == 0) continue;
    GemmParams& p = products.emplace_back(w.product(x.x, "experts", e));
    x.give(p, first);
    p.c = at_row(y.mutable_data_ptr(), first * p.N, y_type);
    p.M = rows, p.c_row = p.N, p.c_type = y_type, p.accumulate = accumulate;
  }
}

// dW_e = dy[rows of e]^T * x[rows of e], rows in token order; exact zeros for an expert without tokens.
void append_gradients(std::vector<GemmParams>& products, const Grouping& g, const Tensor& dy, const Tensor& x, Tensor& dweight) {
  int64_t out = dweight.size(1), in = dweight.size(2);
  auto type = storage(x, "experts");
  for (int64_t e = 0; e < dweight.size(0); ++e)
    products.push_back({.a = at_row(dy.const_data_ptr(), g.start[e] * out, type),
                        .b = at_row(x.const_data_ptr(), g.start[e] * in, type),
                        .c = at_row(dweight.mutable_data_ptr(), e * out * in, storage(dweight, "experts")),
                        .M = out,
                        .N = in,
                        .K = g.start[e + 1] - g.start[e],
                        .a_row = 1,
                        .a_col = out,
                        .b_row = in,
                        .b_col = 1,
                        .c_row = in,
                        .a_type = type,
                        .b_type = type,
                        .c_type = storage(dweight, "experts")});
}

void for_rows(int64_t rows, const std::function<void(int64_t)>& work) {
  constexpr int64_t kBlock = 64;
  parallel_for((rows + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) work(row);
  });
}

void check_experts(const Tensor& x, const Tensor& ids, const Tensor& weights, const Tensor& gate, const Tensor& up,
                   const Tensor& down, const Tensor& shared) {
  Weight in{gate, 1}, out{down, 1};
  FULGUR_CHECK(x.dim() == 2 && in.valid() && in.inputs() == x.size(1),
               "[experts] expected rows [N, D] and gate weights [E, I, D], or packed, got ", x.sizes(), " and ", gate.sizes());
  FULGUR_CHECK(up.sizes() == gate.sizes(), "[experts] expected up weights ", gate.sizes(), ", got ", up.sizes());
  FULGUR_CHECK(out.valid() && down.size(0) == gate.size(0) && out.outputs() == x.size(1) && out.inputs() == in.outputs(),
               "[experts] expected down weights [E, D, I], or packed, got ", down.sizes());
  FULGUR_CHECK(ids.dim() == 2 && ids.size(0) == x.size(0) && ids.sizes() == weights.sizes(),
               "[experts] expected ids and weights [N, k], got ", ids.sizes(), " and ", weights.sizes());
  FULGUR_CHECK(shared.sizes() == x.sizes(), "[experts] expected a shared output ", x.sizes(), ", got ", shared.sizes());
}

// {y, gate rows, up rows, expert outputs}: the last three in grouped order, kept for the backward pass.
std::tuple<Tensor, Tensor, Tensor, Tensor> experts_cpu(const Tensor& x_in, const Tensor& ids, const Tensor& weights_in,
                                                       const Tensor& gate_w, const Tensor& up_w, const Tensor& down_w,
                                                       const Tensor& shared_in) {
  check_experts(x_in, ids, weights_in, gate_w, up_w, down_w, shared_in);
  auto x = x_in.contiguous(), shared = shared_in.contiguous(), weights = weights_in.contiguous();
  int64_t N = x.size(0), D = x.size(1), I = Weight{gate_w, 1}.outputs(), k = ids.size(1);
  Grouping g = group(ids, gate_w.size(0));
  auto x_rows = gather(x, g.token);
  auto gate = at::empty({N * k, I}, x.options()), up = at::empty({N * k, I}, x.options());
  std::vector<GemmParams> products;
  Rows inputs(x_rows, {gate_w, 1}, "experts");
  append_products(products, g, inputs, gate_w, gate);
  append_products(products, g, inputs, up_w, up);
  gemm(products);
  auto hidden = swiglu_cpu(gate, up);
  auto out = at::empty({N * k, D}, x.options());
  products.clear();
  Rows inner(hidden, {down_w, 1}, "experts");
  append_products(products, g, inner, down_w, out);
  gemm(products);
  auto y = at::empty({N, D}, x.options());
  CombineParams combine{
      out.const_data_ptr(), g.place.data(), weights.const_data_ptr<float>(), shared.const_data_ptr(), y.mutable_data_ptr(), k, D,
      storage(x, "experts")};
  auto kernel = FULGUR_CALL(combine_row);
  for_rows(N, [&](int64_t row) { kernel(combine, row); });
  return {y, gate, up, out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> experts_meta(const Tensor& x, const Tensor& ids, const Tensor&, const Tensor& gate_w,
                                                        const Tensor&, const Tensor&, const Tensor&) {
  auto pairs = x.sym_size(0) * ids.sym_size(1);
  auto inner_size = gate_w.dim() == 4 ? gate_w.sym_size(1) * kPanel : gate_w.sym_size(1);
  auto inner = at::empty_symint({pairs, inner_size}, x.options());
  return {at::empty_symint(x.sym_sizes(), x.options()), inner, at::empty_like(inner),
          at::empty_symint({pairs, x.sym_size(1)}, x.options())};
}

// {dx, dweights, dgate_w, dup_w, ddown_w}; the shared output's gradient is dy itself.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> experts_backward_cpu(const Tensor& dy_in, const Tensor& x_in,
                                                                        const Tensor& ids, const Tensor& weights_in,
                                                                        const Tensor& gate_w, const Tensor& up_w,
                                                                        const Tensor& down_w, const Tensor& gate,
                                                                        const Tensor& up, const Tensor& out) {
  check_plain(gate_w, 3, "experts");
  auto dy = dy_in.contiguous(), x = x_in.contiguous(), weights = weights_in.contiguous();
  int64_t N = x.size(0), D = x.size(1), k = ids.size(1);
  auto type = storage(x, "experts");
  Grouping g = group(ids, gate_w.size(0));

  auto dout = at::empty(out.sizes(), out.options());
  auto dweights = at::empty(weights.sizes(), weights.options());
  SpreadParams spread{dy.const_data_ptr(),
                      out.const_data_ptr(),
                      g.place.data(),
                      weights.const_data_ptr<float>(),
                      dout.mutable_data_ptr(),
                      dweights.mutable_data_ptr<float>(),
                      k,
                      D,
                      type};
  auto spread_kernel = FULGUR_CALL(spread_row);
  for_rows(N, [&](int64_t row) { spread_kernel(spread, row); });

  auto dhidden = at::empty(gate.sizes(), gate.options());
  std::vector<GemmParams> products;
  append_products(products, g, Rows(dout), down_w.transpose(1, 2), dhidden);
  gemm(products);
  auto hidden = at::empty(gate.sizes(), gate.options());
  auto dgate = at::empty(gate.sizes(), gate.options()), dup = at::empty(gate.sizes(), gate.options());
  swiglu_all({gate.const_data_ptr(), up.const_data_ptr(), dhidden.const_data_ptr(), hidden.mutable_data_ptr(),
              dgate.mutable_data_ptr(), dup.mutable_data_ptr(), type},
             gate.numel());

  auto x_rows = gather(x, g.token);
  auto dgate_w = at::empty(gate_w.sizes(), gate_w.options()), dup_w = at::empty(up_w.sizes(), up_w.options());
  auto ddown_w = at::empty(down_w.sizes(), down_w.options());
  auto dx_gate = at::empty({N * k, D}, x.options().dtype(at::kFloat));
  products.clear();
  append_gradients(products, g, dgate, x_rows, dgate_w);
  append_gradients(products, g, dup, x_rows, dup_w);
  append_gradients(products, g, dout, hidden, ddown_w);
  append_products(products, g, Rows(dgate), gate_w.transpose(1, 2), dx_gate);
  gemm(products);
  products.clear();
  append_products(products, g, Rows(dup), up_w.transpose(1, 2), dx_gate, /*accumulate=*/true);
  gemm(products);

  auto dx = at::empty(x.sizes(), dx_gate.options());
  CombineParams combine{dx_gate.const_data_ptr(), g.place.data(), nullptr, nullptr, dx.mutable_data_ptr(), k, D, Storage::f32};
  auto kernel = FULGUR_CALL(combine_row);
  for_rows(N, [&](int64_t row) { kernel(combine, row); });
  return {dx.to(x.scalar_type()), dweights, dgate_w, dup_w, ddown_w};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> experts_backward_meta(const Tensor&, const Tensor& x, const Tensor&,
                                                                         const Tensor& weights, const Tensor& gate_w,
                                                                         const Tensor& up_w, const Tensor& down_w, const Tensor&,
                                                                         const Tensor&, const Tensor&) {
  auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {like(x), like(weights), like(gate_w), like(up_w), like(down_w)};
}

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({gate, up});
    return ops::swiglu(gate, up);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<SwigluBackward>("swiglu_backward");
    auto saved = ctx->get_saved_variables();
    auto [dgate, dup] = op.call(grads[0], saved[0], saved[1]);
    return {dgate, dup};
  }
};

struct ExpertsFunction : torch::autograd::Function<ExpertsFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& ids, const Tensor& weights,
                               const Tensor& gate_w, const Tensor& up_w, const Tensor& down_w, const Tensor& shared) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = typed<Forward>("experts");
    auto [y, gate, up, out] = op.call(x, ids, weights, gate_w, up_w, down_w, shared);
    ctx->save_for_backward({x, ids, weights, gate_w, up_w, down_w, gate, up, out});
    ctx->mark_non_differentiable({gate, up, out});
    ctx->set_materialize_grads(false);  // no zeros for outputs without one
    return {y, gate, up, out};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("experts_backward");
    auto s = ctx->get_saved_variables();
    auto [dx, dweights, dgate, dup, ddown] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8]);
    return {dx, Tensor(), dweights, dgate, dup, ddown, grads[0]};
  }
};

Tensor swiglu_autograd(const Tensor& gate, const Tensor& up) { return SwigluFunction::apply(gate, up); }

std::tuple<Tensor, Tensor, Tensor, Tensor> experts_autograd(const Tensor& x, const Tensor& ids, const Tensor& weights,
                                                            const Tensor& gate_w, const Tensor& up_w, const Tensor& down_w,
                                                            const Tensor& shared) {
  auto out = ExpertsFunction::apply(x, ids, weights, gate_w, up_w, down_w, shared);
  return {out[0], out[1], out[2], out[3]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("swiglu(Tensor gate, Tensor up) -> Tensor");
  m.def("swiglu_backward(Tensor dy, Tensor gate, Tensor up) -> (Tensor, Tensor)");
  m.def(
      "experts(Tensor x, Tensor ids, Tensor weights, Tensor gate, Tensor up, Tensor down, Tensor shared)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "experts_backward(Tensor dy, Tensor x, Tensor ids, Tensor weights, Tensor gate, Tensor up, Tensor down,"
      " Tensor gate_rows, Tensor up_rows, Tensor out_rows) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("swiglu", swiglu_cpu);
  m.impl("swiglu_backward", swiglu_backward_cpu);
  m.impl("experts", experts_cpu);
  m.impl("experts_backward", experts_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("swiglu", swiglu_meta);
  m.impl("swiglu_backward", swiglu_backward_meta);
  m.impl("experts", experts_meta);
  m.impl("experts_backward", experts_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) {
  m.impl("swiglu", swiglu_autograd);
  m.impl("experts", experts_autograd);
}

}  // namespace

Tensor swiglu(const Tensor& gate, const Tensor& up) {
  static const auto op = typed<Two>("swiglu");
  return op.call(gate, up);
}

Tensor experts(const Tensor& x_ND, const Tensor& ids_Nk, const Tensor& weights_Nk, const Tensor& gate_EID, const Tensor& up_EID,
               const Tensor& down_EDI, const Tensor& shared_ND) {
  static const auto op = typed<Forward>("experts");
  return std::get<0>(op.call(x_ND, ids_Nk, weights_Nk, gate_EID, up_EID, down_EDI, shared_ND));
}

}  // namespace fulgur::ops
