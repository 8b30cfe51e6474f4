#include "fulgur/ops/dense_mla/dense_mla.h"

#include "fulgur/ops/dense_mla/kernels.h"
#include "fulgur/ops/op.h"
#include "fulgur/ops/paged.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops {
namespace {

using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, double,
                                           const std::optional<Tensor>&);
using Backward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                    const Tensor&, const Tensor&, double);

void check(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible, const PagedKeys& keys) {
  FULGUR_CHECK(
      q.dim() == 3 && k.dim() == 3 && v.dim() == 3 && k.size(1) > 0 && q.size(1) % k.size(1) == 0 && q.size(2) == k.size(2),
      "[dense_mla] expected q [N, H, E] and k [S, H or a part of it, E], got ", q.sizes(), " and ", k.sizes());
  FULGUR_CHECK(v.size(0) == k.size(0) && v.size(1) == k.size(1), "[dense_mla] expected v [", k.size(0), ", ", k.size(1),
               ", V], got ", v.sizes());
  FULGUR_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
               "[dense_mla] expected q, k, v of one type, got ", q.scalar_type(), ", ", k.scalar_type(), ", ", v.scalar_type());
  check_visible(visible, q.size(0), keys.count, "dense_mla");
  keys.check_ranges(visible, "dense_mla");
}

DenseMlaParams params_of(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible, const Tensor& out,
                         const Tensor& lse, double scale) {
  return {.q = q.const_data_ptr(),
          .k = k.const_data_ptr(),
          .v = v.const_data_ptr(),
          .visible = visible.const_data_ptr<int>(),
          .out = const_cast<void*>(out.const_data_ptr()),
          .lse = const_cast<float*>(lse.const_data_ptr<float>()),
          .H = q.size(1),
          .G = k.size(1),
          .E = q.size(2),
          .V = v.size(2),
          .scale = float(scale),
          .type = storage(q, "dense_mla"),
          .dout = nullptr,
          .dq = nullptr,
          .dk = nullptr,
          .dv = nullptr};
}

std::tuple<Tensor, Tensor> dense_mla_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& v_in, const Tensor& visible_in,
                                         double scale, const std::optional<Tensor>& pages) {
  auto visible = visible_in.contiguous(), q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous();
  PagedKeys keys(pages, k.size(0), "dense_mla");
  check(q, k, v, visible, keys);
  int64_t N = q.size(0), H = q.size(1);
  auto out = at::empty({N, H, v.size(2)}, q.options());
  auto lse = at::empty({N, H}, q.options().dtype(at::kFloat));
  auto params = params_of(q, k, v, visible, out, lse, scale);
  params.pages = keys.pages;
  auto blocks = row_blocks(visible, kDenseMlaRows);
  auto kernel = FULGUR_CALL(dense_mla_block);
  int64_t count = int64_t(blocks.size());
  parallel_for(count * H, [&](int64_t i) {
    const auto& block = blocks[count - 1 - i / H];  // the longest first
    kernel(params, i % H, block.first, block.last);
  });
  return {out, lse};
}

std::tuple<Tensor, Tensor> dense_mla_meta(const Tensor& q, const Tensor&, const Tensor& v, const Tensor&, double,
                                          const std::optional<Tensor>&) {
  return {at::empty_symint({q.sym_size(0), q.sym_size(1), v.sym_size(2)}, q.options()),
          at::empty_symint({q.sym_size(0), q.sym_size(1)}, q.options().dtype(at::kFloat))};
}

std::tuple<Tensor, Tensor, Tensor> dense_mla_backward_cpu(const Tensor& dout_in, const Tensor& q_in, const Tensor& k_in,
                                                          const Tensor& v_in, const Tensor& visible_in, const Tensor& out_in,
                                                          const Tensor& lse_in, double scale) {
  auto visible = visible_in.contiguous(), q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous();
  FULGUR_CHECK(q.size(1) == k.size(1),
               "[dense_mla] expected as many heads of keys as of queries where a gradient is wanted, got ", k.size(1), " and ",
               q.size(1));
  auto dout = dout_in.to(q.scalar_type()).contiguous(), out = out_in.contiguous(), lse = lse_in.contiguous();
  auto f32 = q.options().dtype(at::kFloat);
  auto dq = at::zeros(q.sizes(), f32), dk = at::zeros(k.sizes(), f32), dv = at::zeros(v.sizes(), f32);
  auto params = params_of(q, k, v, visible, out, lse, scale);
  params.dout = dout.const_data_ptr();
  params.dq = dq.mutable_data_ptr<float>();
  params.dk = dk.mutable_data_ptr<float>();
  params.dv = dv.mutable_data_ptr<float>();
  auto tasks = key_disjoint(visible, kDenseMlaRows);
  auto kernel = FULGUR_CALL(dense_mla_backward_block);
  int64_t H = q.size(1);
  parallel_for(int64_t(tasks.size()) * H, [&](int64_t i) {
    for (const auto& block : tasks[i / H]) kernel(params, i % H, block.first, block.last);
  });
  return {dq.to(q.scalar_type()), dk.to(q.scalar_type()), dv.to(q.scalar_type())};
}

std::tuple<Tensor, Tensor, Tensor> dense_mla_backward_meta(const Tensor&, const Tensor& q, const Tensor& k, const Tensor& v,
                                                           const Tensor&, const Tensor&, const Tensor&, double) {
  auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {like(q), like(k), like(v)};
}

struct DenseMlaFunction : torch::autograd::Function<DenseMlaFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible,
                               double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse] = ops::dense_mla(q, k, v, visible, scale);
    ctx->save_for_backward({q, k, v, visible, out, lse});
    ctx->saved_data["scale"] = scale;
    ctx->mark_non_differentiable({lse});
    ctx->set_materialize_grads(false);  // no zeros for outputs without one
    return {out, lse};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("dense_mla_backward");
    auto s = ctx->get_saved_variables();
    auto [dq, dk, dv] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], ctx->saved_data["scale"].toDouble());
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> dense_mla_autograd(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible,
                                              double scale, const std::optional<Tensor>& pages) {
  if (pages) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::dense_mla(q, k, v, visible, scale, *pages);
  }
  // A gradient is made of keys for each head of q: shared ones are written out, and their gradients added up.
  bool shared = k.dim() == 3 && k.size(1) > 0 && q.size(1) > k.size(1) && q.size(1) % k.size(1) == 0;
  bool wanted = at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
  auto each = [&](const Tensor& x) {
    return shared && wanted ? x.unsqueeze(2).expand({-1, -1, q.size(1) / x.size(1), -1}).flatten(1, 2) : x;
  };
  auto out = DenseMlaFunction::apply(q, each(k), each(v), visible, scale);
  return {out[0], out[1]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("dense_mla(Tensor q, Tensor k, Tensor v, Tensor visible, float scale, Tensor? pages=None) -> (Tensor, Tensor)");
  m.def(
      "dense_mla_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor visible, Tensor out, Tensor lse,"
      " float scale) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("dense_mla", dense_mla_cpu);
  m.impl("dense_mla_backward", dense_mla_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("dense_mla", dense_mla_meta);
  m.impl("dense_mla_backward", dense_mla_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("dense_mla", dense_mla_autograd); }

}  // namespace

std::tuple<Tensor, Tensor> dense_mla(const Tensor& q_NHE, const Tensor& k_SHE, const Tensor& v_SHV, const Tensor& visible_N2,
                                     double scale, const Tensor& pages) {
  static const auto op = typed<Forward>("dense_mla");
  return op.call(q_NHE, k_SHE, v_SHV, visible_N2, scale, given(pages));
}

}  // namespace fulgur::ops
