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

// The heads of q in groups that share keys; a key of a group is its values and, where they are apart, its numbers behind them.
struct Groups {
  Groups(const Tensor& q, const Tensor& kv, int64_t value_dim)
      : count(kv.dim() == 3 ? kv.size(1) : 1),
        apart(kv.dim() == 3 || (kv.scalar_type() != at::kByte && kv.size(1) == value_dim + q.size(2))),
        C(apart ? value_dim + q.size(2) : q.size(2)) {}
  int64_t count;
  bool apart;
  int64_t C;
};

void check(const Tensor& q, const Tensor& kv, const Tensor& selected, int64_t keys, int64_t value_dim) {
  bool fp8 = kv.scalar_type() == at::kByte;
  FULGUR_CHECK(q.dim() == 3 && (kv.dim() == 2 || kv.dim() == 3) && value_dim > 0,
               "[sparse_mla] expected q [N, H, C], rows of keys, and a value size, got ", q.sizes(), ", ", kv.sizes(), " and ",
               value_dim);
  Groups groups(q, kv, value_dim);
  int64_t bytes = value_dim + (value_dim + 127) / 128 * 4 + 2 * (q.size(2) - value_dim);
  FULGUR_CHECK((groups.apart || value_dim <= q.size(2)) && kv.size(kv.dim() - 1) == (fp8 ? bytes : groups.C),
               "[sparse_mla] expected kv [S, ", fp8 ? bytes : q.size(2), "] with values of at most as many numbers, or [S, ",
               value_dim + q.size(2), "] of values and keys, got ", kv.sizes(), " and values of ", value_dim);
  FULGUR_CHECK(groups.count > 0 && q.size(1) % groups.count == 0, "[sparse_mla] expected groups of keys that divide ", q.size(1),
               " heads, got ", groups.count);
  FULGUR_CHECK(fp8 || q.scalar_type() == kv.scalar_type(), "[sparse_mla] expected q and kv of one type, got ", q.scalar_type(),
               " and ", kv.scalar_type());
  check_selected(selected, q.size(0), keys, "sparse_mla");
}

const void* moved(const void* from, Storage type, int64_t numbers) {
  return static_cast<const char*>(from) + numbers * (type == Storage::f32 ? 4 : 2);
}

SparseMlaParams params_of(const Tensor& q, const Tensor& kv, const Tensor& selected, const Tensor& out, const Tensor& lse,
                          int64_t value_dim, double scale, int64_t group) {
  Groups groups(q, kv, value_dim);
  int64_t H = q.size(1) / groups.count;
  auto type = storage(q, "sparse_mla");
  return {.q = moved(q.const_data_ptr(), type, group * H * q.size(2)),
          .kv = moved(kv.const_data_ptr(), type, group * groups.C),
          .selected = selected.const_data_ptr<int>(),
          .rows = selected.const_data_ptr<int>(),
          .out = const_cast<void*>(moved(out.const_data_ptr(), type, group * H * value_dim)),
          .lse = const_cast<float*>(lse.const_data_ptr<float>()) + group * H,
          .target = nullptr,
          .H = H,
          .Cq = q.size(2),
          .C = groups.C,
          .R = value_dim,
          .K = selected.size(1),
          .all_heads = q.size(1),
          .kv_row = groups.count * groups.C,
          .scale = float(scale),
          .type = type,
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
  std::vector<int32_t> rows(keys.pages ? selected.numel() : 0);
  const int* chosen = selected.const_data_ptr<int>();
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = chosen[i] < 0 ? -1 : int32_t(row_of_key(keys.pages, chosen[i]));
  int64_t groups = Groups(q, kv, value_dim).count;
  auto of_group = groups > 1 ? at::empty_like(target) : target;
  for (int64_t g = 0; g < groups; ++g) {
    auto params = params_of(q, kv, selected, out, lse, value_dim, scale, g);
    params.target = of_group.mutable_data_ptr<float>();
    if (keys.pages) params.rows = rows.data();
    if (N >= 2 * threads()) {
      auto kernel = FULGUR_CALL(sparse_mla_row);
      parallel_for(N, [&](int64_t row) { kernel(params, row); });
    } else attend_few(params, N);
    if (groups > 1) g == 0 ? target.copy_(of_group) : target.add_(of_group);
  }
  if (groups > 1) target.div_(double(groups));
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
  int64_t groups = Groups(q, kv, value_dim).count;
  for (int64_t g = 0; g < groups; ++g) {
    auto of_group = groups > 1 ? at::zeros({kv.size(0), kv.size(2)}, f32) : dkv;
    auto params = params_of(q, kv, selected, out, lse, value_dim, scale, g);
    params.dout = moved(dout.const_data_ptr(), params.type, g * params.H * value_dim);
    params.dq = dq.mutable_data_ptr<float>() + g * params.H * params.Cq;
    KeyGradients keys{.selected = params.selected,
                      .N = q.size(0),
                      .K = params.K,
                      .terms = 2 * params.H,
                      .length = params.C,
                      .split = params.R,
                      .to = of_group.mutable_data_ptr<float>(),
                      .room = nullptr};
    auto room = at::empty({keys.slots() * keys.slot_size()}, f32);
    keys.room = room.mutable_data_ptr<float>();
    auto kernel = FULGUR_CALL(sparse_mla_backward_row);
    add_to_keys(
        keys, [&](int64_t row, int64_t slot) { kernel(params, row, keys.coefficients(slot), keys.stride(), keys.lines(slot)); });
    if (groups > 1) dkv.select(1, g).copy_(of_group);
  }
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
