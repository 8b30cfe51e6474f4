#include "fulgur/ops/sparse_mla/sparse_mla.h"

#include "fulgur/ops/linear/gathered.h"
#include "fulgur/ops/op.h"
#include "fulgur/ops/paged.h"
#include "fulgur/ops/selected.h"
#include "fulgur/ops/sparse_mla/kernels.h"

namespace fulgur::ops {
namespace {

using Forward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, int64_t, double,
                                                   const std::optional<Tensor>&);
using Backward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                            const Tensor&, int64_t, double);

void check(const Tensor& q, const Tensor& kv, const Tensor& selected, int64_t keys, int64_t value_dim) {
  bool fp8 = kv.scalar_type() == at::kByte;
  FULGUR_CHECK(q.dim() == 3 && kv.dim() == 2 && value_dim > 0 && value_dim <= q.size(2),
               "[sparse_mla] expected q [N, H, C], rows of keys, and a value size of at most C, got ", q.sizes(), ", ",
               kv.sizes(), " and ", value_dim);
  int64_t bytes = value_dim + (value_dim + 127) / 128 * 4 + 2 * (q.size(2) - value_dim);
  FULGUR_CHECK(kv.size(1) == (fp8 ? bytes : q.size(2)), "[sparse_mla] expected kv [S, ", fp8 ? bytes : q.size(2), "], got ",
               kv.sizes());
  FULGUR_CHECK(fp8 || q.scalar_type() == kv.scalar_type(), "[sparse_mla] expected q and kv of one type, got ", q.scalar_type(),
               " and ", kv.scalar_type());
  check_selected(selected, q.size(0), keys, "sparse_mla");
}

SparseMlaParams params_of(const Tensor& q, const Tensor& kv, const Tensor& selected, const Tensor& out, const Tensor& lse,
                          int64_t value_dim, double scale) {
  return {.q = q.const_data_ptr(),
          .kv = kv.const_data_ptr(),
          .selected = selected.const_data_ptr<int>(),
          .rows = selected.const_data_ptr<int>(),
          .out = const_cast<void*>(out.const_data_ptr()),
          .lse = const_cast<float*>(lse.const_data_ptr<float>()),
          .target = nullptr,
          .H = q.size(1),
          .C = q.size(2),
          .R = value_dim,
          .K = selected.size(1),
          .scale = float(scale),
          .type = storage(q, "sparse_mla"),
          .fp8 = kv.scalar_type() == at::kByte,
          .dout = nullptr,
          .dq = nullptr};
}

// Of few rows stretches of keys, heads, and stretches of values are the tasks, so that one token keeps all threads at work.
void attend_few(const SparseMlaParams& p, int64_t N) {
  constexpr int64_t kKeys = 256, kValues = 128;
  int64_t size = p.H * padded_keys(p.K), stretches = (p.K + kKeys - 1) / kKeys, parts = (p.R + kValues - 1) / kValues;
  std::vector<float> scores(N * size);
  auto of_row = [&](int64_t row) { return scores.data() + row * size; };
  auto score = FULGUR_CALL(sparse_mla_scores);
  auto softmax = FULGUR_CALL(sparse_mla_softmax);
  auto values = FULGUR_CALL(sparse_mla_values);
  auto target = FULGUR_CALL(sparse_mla_target);
  parallel_for(N * stretches, [&](int64_t i) {
    int64_t row = i / stretches, first = i % stretches * kKeys;
    score(p, row, first, first + kKeys, of_row(row));
  });
  parallel_for(N * p.H, [&](int64_t i) { softmax(p, i / p.H, i % p.H, of_row(i / p.H)); });
  parallel_for(N * parts, [&](int64_t i) {
    int64_t row = i / parts, first = i % parts * kValues;
    values(p, row, first, std::min(p.R, first + kValues), of_row(row));
  });
  parallel_for(N, [&](int64_t row) { target(p, row, of_row(row)); });
}

std::tuple<Tensor, Tensor, Tensor> sparse_mla_cpu(const Tensor& q_in, const Tensor& kv_in, const Tensor& selected_in,
                                                  int64_t value_dim, double scale, const std::optional<Tensor>& pages) {
  auto q = q_in.contiguous(), kv = kv_in.contiguous(), selected = selected_in.contiguous();
  PagedKeys keys(pages, kv.size(0), "sparse_mla");
  check(q, kv, selected, keys.count, value_dim);
  int64_t N = q.size(0), H = q.size(1);
  auto f32 = q.options().dtype(at::kFloat);
  auto out = at::empty({N, H, value_dim}, q.options());
  auto lse = at::empty({N, H}, f32), target = at::empty({N, selected.size(1)}, f32);
  auto params = params_of(q, kv, selected, out, lse, value_dim, scale);
  params.target = target.mutable_data_ptr<float>();
  std::vector<int32_t> rows(keys.pages ? selected.numel() : 0);
  if (keys.pages) {
    for (size_t i = 0; i < rows.size(); ++i)
      rows[i] = params.selected[i] < 0 ? -1 : int32_t(row_of_key(keys.pages, params.selected[i]));
    params.rows = rows.data();
  }
  if (N >= 2 * threads()) {
    auto kernel = FULGUR_CALL(sparse_mla_row);
    parallel_for(N, [&](int64_t row) { kernel(params, row); });
  } else attend_few(params, N);
  return {out, lse, target};
}

std::tuple<Tensor, Tensor, Tensor> sparse_mla_meta(const Tensor& q, const Tensor&, const Tensor& selected, int64_t value_dim,
                                                   double, const std::optional<Tensor>&) {
  auto f32 = q.options().dtype(at::kFloat);
  return {at::empty_symint({q.sym_size(0), q.sym_size(1), value_dim}, q.options()),
          at::empty_symint({q.sym_size(0), q.sym_size(1)}, f32), at::empty_symint(selected.sym_sizes(), f32)};
}

std::tuple<Tensor, Tensor> sparse_mla_backward_cpu(const Tensor& dout_in, const Tensor& q_in, const Tensor& kv_in,
                                                   const Tensor& selected_in, const Tensor& out_in, const Tensor& lse_in,
                                                   int64_t value_dim, double scale) {
  auto q = q_in.contiguous(), kv = kv_in.contiguous(), selected = selected_in.contiguous();
  auto dout = dout_in.to(q.scalar_type()).contiguous(), out = out_in.contiguous(), lse = lse_in.contiguous();
  FULGUR_CHECK(kv.scalar_type() == q.scalar_type(), "[sparse_mla] expected plain keys where a gradient is wanted, got ",
               kv.scalar_type());
  auto f32 = q.options().dtype(at::kFloat);
  auto dq = at::empty(q.sizes(), f32), dkv = at::zeros(kv.sizes(), f32);
  auto params = params_of(q, kv, selected, out, lse, value_dim, scale);
  params.dout = dout.const_data_ptr();
  params.dq = dq.mutable_data_ptr<float>();
  KeyGradients keys{.selected = params.selected,
                    .N = q.size(0),
                    .K = params.K,
                    .terms = 2 * params.H,
                    .length = params.C,
                    .split = params.R,
                    .to = dkv.mutable_data_ptr<float>(),
                    .room = nullptr};
  auto room = at::empty({keys.slots() * keys.slot_size()}, f32);
  keys.room = room.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(sparse_mla_backward_row);
  add_to_keys(keys,
              [&](int64_t row, int64_t slot) { kernel(params, row, keys.coefficients(slot), keys.stride(), keys.lines(slot)); });
  return {dq.to(q.scalar_type()), dkv.to(kv.scalar_type())};
}

std::tuple<Tensor, Tensor> sparse_mla_backward_meta(const Tensor&, const Tensor& q, const Tensor& kv, const Tensor&,
                                                    const Tensor&, const Tensor&, int64_t, double) {
  return {at::empty_symint(q.sym_sizes(), q.options()), at::empty_symint(kv.sym_sizes(), kv.options())};
}

struct SparseMlaFunction : torch::autograd::Function<SparseMlaFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& kv, const Tensor& selected, int64_t value_dim,
                               double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [out, lse, target] = ops::sparse_mla(q, kv, selected, value_dim, scale);
    ctx->save_for_backward({q, kv, selected, out, lse});
    ctx->saved_data["value_dim"] = value_dim;
    ctx->saved_data["scale"] = scale;
    ctx->mark_non_differentiable({lse, target});
    ctx->set_materialize_grads(false);  // no zeros for outputs without one
    return {out, lse, target};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("sparse_mla_backward");
    auto s = ctx->get_saved_variables();
    auto [dq, dkv] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], ctx->saved_data["value_dim"].toInt(),
                             ctx->saved_data["scale"].toDouble());
    return {dq, dkv, Tensor(), Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor, Tensor> sparse_mla_autograd(const Tensor& q, const Tensor& kv, const Tensor& selected,
                                                       int64_t value_dim, double scale, const std::optional<Tensor>& pages) {
  if (pages) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::sparse_mla(q, kv, selected, value_dim, scale, *pages);
  }
  auto out = SparseMlaFunction::apply(q, kv, selected, value_dim, scale);
  return {out[0], out[1], out[2]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def(
      "sparse_mla(Tensor q, Tensor kv, Tensor selected, int value_dim, float scale, Tensor? pages=None)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "sparse_mla_backward(Tensor dout, Tensor q, Tensor kv, Tensor selected, Tensor out, Tensor lse, int value_dim,"
      " float scale) -> (Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("sparse_mla", sparse_mla_cpu);
  m.impl("sparse_mla_backward", sparse_mla_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("sparse_mla", sparse_mla_meta);
  m.impl("sparse_mla_backward", sparse_mla_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("sparse_mla", sparse_mla_autograd); }

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sparse_mla(const Tensor& q_NHC, const Tensor& kv_SC, const Tensor& selected_NK,
                                              int64_t value_dim, double scale, const Tensor& pages) {
  static const auto op = typed<Forward>("sparse_mla");
  return op.call(q_NHC, kv_SC, selected_NK, value_dim, scale, given(pages));
}

}  // namespace fulgur::ops
