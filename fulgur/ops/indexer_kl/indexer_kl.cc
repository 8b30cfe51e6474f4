#include "fulgur/ops/indexer_kl/indexer_kl.h"

#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "fulgur/ops/indexer_kl/kernels.h"
#include "fulgur/ops/linear/gathered.h"
#include "fulgur/ops/op.h"
#include "fulgur/ops/selected.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops {
namespace {

using Dense = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                     double);
using Sparse = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&);
// What the backward ops give: {kl_N, dq, dk, dw}, the gradients f32, of sum(dkl * kl).
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using DenseBackward = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                const Tensor&, const Tensor&, double);
using SparseBackward = Gradients(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&);

IndexerKlParams indexer_params(const Tensor& q, const Tensor& k, const Tensor& w) {
  FULGUR_CHECK(q.dim() == 3 && (k.dim() == 2 || k.dim() == 3) && q.size(2) == k.size(k.dim() - 1) &&
                   q.scalar_type() == k.scalar_type() && (k.dim() == 2 || (k.size(1) > 0 && q.size(1) % k.size(1) == 0)),
               "[indexer_kl] expected q [N, J, D] and k [S, D], or [S, G, D] of groups that divide J, of one type, got ",
               q.sizes(), " and ", k.sizes());
  FULGUR_CHECK(w.dim() == 2 && w.size(0) == q.size(0) && w.size(1) == q.size(1) && w.scalar_type() == at::kFloat,
               "[indexer_kl] expected float32 weights [", q.size(0), ", ", q.size(1), "], got ", w.sizes());
  IndexerKlParams params{};
  params.indexer = {q.const_data_ptr(), k.const_data_ptr(), w.const_data_ptr<float>(), nullptr,
                    q.size(1),          q.size(2),          storage(q, "indexer_kl")};
  params.indexer.G = k.dim() == 3 ? k.size(1) : 1;
  return params;
}

IndexerKlParams dense_params(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& aq, const Tensor& ak,
                             const Tensor& lse, const Tensor& visible, double scale) {
  auto params = indexer_params(q, k, w);
  check_visible(visible, q.size(0), k.size(0), "indexer_kl");
  FULGUR_CHECK(aq.dim() == 3 && ak.dim() == 3 && aq.size(0) == q.size(0) && ak.size(0) == k.size(0) && ak.size(1) > 0 &&
                   aq.size(1) % ak.size(1) == 0 && aq.size(2) == ak.size(2) && lse.size(0) == aq.size(0) &&
                   lse.size(1) == aq.size(1),
               "[indexer_kl] expected attention q [N, H, E], k [S, H, E] or of fewer heads that divide H, and lse [N, H], got ",
               aq.sizes(), ", ", ak.sizes(), ", ", lse.sizes());
  params.indexer.visible = visible.const_data_ptr<int>();
  params.aq = aq.const_data_ptr(), params.ak = ak.const_data_ptr();
  params.attention_lse = lse.const_data_ptr<float>();
  params.H = aq.size(1), params.HK = ak.size(1), params.E = aq.size(2);
  params.scale = float(scale);
  params.attention_type = storage(aq, "indexer_kl");
  return params;
}

Gradients zeros_like(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& dkl, IndexerKlParams& params) {
  Gradients out{at::zeros({q.size(0)}, w.options()), at::zeros(q.sizes(), w.options()), at::zeros(k.sizes(), w.options()),
                at::zeros(w.sizes(), w.options())};
  auto& [kl, dq, dk, dw] = out;
  params.kl = kl.mutable_data_ptr<float>();
  params.dkl = dkl.const_data_ptr<float>();
  params.dq = dq.mutable_data_ptr<float>();
  params.dk = params.indexer.G > 1 ? nullptr : dk.mutable_data_ptr<float>();
  params.dw = dw.mutable_data_ptr<float>();
  return out;
}

// One block of rows: its stripes at once, the first into the results, then all others added to them in order.
void dense_block(const IndexerKlParams& p, const RowBlock& block) {
  const IndexerParams& x = p.indexer;
  int64_t rows = block.last - block.first, keys = 0;
  for (int64_t row = block.first; row < block.last; ++row)
    keys = std::max<int64_t>(keys, x.visible[2 * row + 1] - x.visible[2 * row]);
  int64_t stripes = std::clamp<int64_t>((keys + kIndexerTile - 1) / kIndexerTile, 1, kKlStripes);
  int64_t of_q = p.dkl ? x.J * x.D : 0, of_w = p.dkl ? x.J : 0;
  std::vector<double> sums(stripes * rows * 3);
  std::vector<float> dq((stripes - 1) * rows * of_q), dw((stripes - 1) * rows * of_w);
  auto kernel = FULGUR_CALL(indexer_kl_stripe);
  parallel_for(stripes, [&](int64_t i) {
    KlStripe out{sums.data() + i * rows * 3, nullptr, nullptr};
    if (p.dkl && i == 0) out.dq = p.dq + block.first * of_q, out.dw = p.dw + block.first * of_w;
    else if (p.dkl) out.dq = dq.data() + (i - 1) * rows * of_q, out.dw = dw.data() + (i - 1) * rows * of_w;
    kernel(p, block.first, block.last, i, out);
  });
  parallel_for(rows, [&](int64_t r) {
    double* total = sums.data() + r * 3;
    for (int64_t i = 1; i < stripes; ++i) {
      for (int part = 0; part < 3; ++part) total[part] += sums[(i * rows + r) * 3 + part];
      const float* from = dq.data() + ((i - 1) * rows + r) * of_q;
      for (int64_t d = 0; d < of_q; ++d) p.dq[(block.first + r) * of_q + d] += from[d];
      for (int64_t j = 0; j < of_w; ++j) p.dw[(block.first + r) * of_w + j] += dw[((i - 1) * rows + r) * of_w + j];
    }
    double lse = p.lse[block.first + r];
    p.kl[block.first + r] = total[2] > 0 ? float(total[0] - total[1] + total[2] * lse) : 0;
  });
}

// Within a document, blocks add to its keys in ascending order; documents are independent.
void dense_all(IndexerKlParams& p, const Tensor& visible) {
  std::vector<double> lse(visible.size(0));
  p.lse = lse.data();
  auto blocks = row_blocks(visible, kIndexerRows);
  auto lse_kernel = FULGUR_CALL(indexer_lse_block);
  parallel_for(int64_t(blocks.size()), [&](int64_t i) {
    const auto& block = blocks[blocks.size() - 1 - i];  // the longest first
    lse_kernel(p, block.first, block.last);
  });
  auto documents = key_disjoint(visible, kKlRows);
  auto run = [&](int64_t i) {
    for (const auto& block : documents[i]) dense_block(p, block);
  };
  int64_t count = int64_t(documents.size());
  if (count >= threads()) parallel_for(count, run);
  else
    for (int64_t i = 0; i < count; ++i) run(i);
}

Tensor dense_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& w_in, const Tensor& aq_in, const Tensor& ak_in,
                 const Tensor& alse_in, const Tensor& visible_in, double scale) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous(), aq = aq_in.contiguous();
  auto ak = ak_in.contiguous(), alse = alse_in.contiguous(), visible = visible_in.contiguous();
  auto params = dense_params(q, k, w, aq, ak, alse, visible, scale);
  auto kl = at::empty({q.size(0)}, w.options());
  params.kl = kl.mutable_data_ptr<float>();
  dense_all(params, visible);
  return kl;
}

Gradients dense_backward_cpu(const Tensor& dkl_in, const Tensor& q_in, const Tensor& k_in, const Tensor& w_in,
                             const Tensor& aq_in, const Tensor& ak_in, const Tensor& alse_in, const Tensor& visible_in,
                             double scale) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous(), aq = aq_in.contiguous(), dkl = dkl_in.contiguous();
  auto ak = ak_in.contiguous(), alse = alse_in.contiguous(), visible = visible_in.contiguous();
  auto params = dense_params(q, k, w, aq, ak, alse, visible, scale);
  auto out = zeros_like(q, k, w, dkl, params);
  dense_all(params, visible);
  return out;
}

IndexerKlParams sparse_params(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& selected, const Tensor& target) {
  auto params = indexer_params(q, k, w);
  check_selected(selected, q.size(0), k.size(0), "indexer_kl");
  FULGUR_CHECK(selected.sizes() == target.sizes() && target.scalar_type() == at::kFloat,
               "[indexer_kl] expected a float32 target ", selected.sizes(), ", got ", target.sizes());
  params.selected = selected.const_data_ptr<int>();
  params.target = target.const_data_ptr<float>();
  params.K = selected.size(1);
  return params;
}

// KL of all rows, and where wanted the gradients of what is their own: keys get none.
void sparse_rows(const IndexerKlParams& params, int64_t N) {
  auto kernel = FULGUR_CALL(indexer_kl_sparse_row);
  int64_t stride = padded_keys(params.K);
  parallel_for(N, [&](int64_t row) {
    static thread_local std::vector<float> dots;
    dots.resize(std::max<size_t>(dots.size(), params.indexer.J * stride));
    kernel(params, row, dots.data(), stride, nullptr);
  });
}

Tensor sparse_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& w_in, const Tensor& selected_in,
                  const Tensor& target_in) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous();
  auto selected = selected_in.contiguous(), target = target_in.contiguous();
  auto params = sparse_params(q, k, w, selected, target);
  auto kl = at::empty({q.size(0)}, w.options());
  params.kl = kl.mutable_data_ptr<float>();
  sparse_rows(params, q.size(0));
  return kl;
}

Gradients sparse_backward_cpu(const Tensor& dkl_in, const Tensor& q_in, const Tensor& k_in, const Tensor& w_in,
                              const Tensor& selected_in, const Tensor& target_in) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous();
  auto selected = selected_in.contiguous(), target = target_in.contiguous(), dkl = dkl_in.contiguous();
  auto params = sparse_params(q, k, w, selected, target);
  auto out = zeros_like(q, k, w, dkl, params);
  if (params.indexer.G > 1) {
    sparse_rows(params, q.size(0));
    return out;
  }
  KeyGradients keys{.selected = params.selected,
                    .N = q.size(0),
                    .K = params.K,
                    .terms = q.size(1),
                    .length = q.size(2),
                    .split = 0,
                    .to = params.dk,
                    .room = nullptr};
  auto room = at::empty({keys.slots() * keys.slot_size()}, w.options());
  keys.room = room.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(indexer_kl_sparse_row);
  add_to_keys(keys,
              [&](int64_t row, int64_t slot) { kernel(params, row, keys.coefficients(slot), keys.stride(), keys.lines(slot)); });
  return out;
}

Tensor rows_meta(const Tensor& q, const Tensor& w) { return at::empty_symint({q.sym_size(0)}, w.options()); }

Gradients gradients_meta(const Tensor& q, const Tensor& k, const Tensor& w) {
  auto like = [&](const Tensor& t) { return at::empty_symint(t.sym_sizes(), w.options()); };
  return {rows_meta(q, w), like(q), like(k), like(w)};
}

// Gradients made in the forward pass, for dkl = 1, serve where all rows have one weight: a sum's gradient is one number, spread.
variable_list scaled(const Tensor& dkl, const variable_list& made, at::ScalarType type) {
  auto weight = dkl.select(0, 0);
  return {(made[0] * weight).to(type), (made[1] * weight).to(type), made[2] * weight};
}

struct DenseFunction : torch::autograd::Function<DenseFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& aq,
                        const Tensor& ak, const Tensor& alse, const Tensor& visible, double scale, bool wanted) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto forward_op = typed<Dense>("indexer_kl_dense");
    static const auto op = typed<DenseBackward>("indexer_kl_dense_backward");
    if (!wanted) return forward_op.call(q, k, w, aq, ak, alse, visible, scale);
    auto [kl, dq, dk, dw] = op.call(at::ones_symint({q.sym_size(0)}, w.options()), q, k, w, aq, ak, alse, visible, scale);
    ctx->save_for_backward({q, k, w, aq, ak, alse, visible, dq, dk, dw});
    ctx->saved_data["scale"] = scale;
    return kl;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<DenseBackward>("indexer_kl_dense_backward");
    auto s = ctx->get_saved_variables();
    variable_list made{s[7], s[8], s[9]};
    if (!equal_weights(grads[0])) {
      auto all = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], ctx->saved_data["scale"].toDouble());
      made = {std::get<1>(all).to(s[0].scalar_type()), std::get<2>(all).to(s[0].scalar_type()), std::get<3>(all)};
    } else made = scaled(grads[0], made, s[0].scalar_type());
    return {made[0], made[1], made[2], Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct SparseFunction : torch::autograd::Function<SparseFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& selected,
                        const Tensor& target, bool wanted) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto forward_op = typed<Sparse>("indexer_kl_sparse");
    static const auto op = typed<SparseBackward>("indexer_kl_sparse_backward");
    if (!wanted) return forward_op.call(q, k, w, selected, target);
    auto [kl, dq, dk, dw] = op.call(at::ones_symint({q.sym_size(0)}, w.options()), q, k, w, selected, target);
    ctx->save_for_backward({q, k, w, selected, target, dq, dk, dw});
    return kl;
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<SparseBackward>("indexer_kl_sparse_backward");
    auto s = ctx->get_saved_variables();
    variable_list made{s[5], s[6], s[7]};
    if (!equal_weights(grads[0])) {
      auto all = op.call(grads[0], s[0], s[1], s[2], s[3], s[4]);
      made = {std::get<1>(all).to(s[0].scalar_type()), std::get<2>(all).to(s[0].scalar_type()), std::get<3>(all)};
    } else made = scaled(grads[0], made, s[0].scalar_type());
    return {made[0], made[1], made[2], Tensor(), Tensor(), Tensor()};
  }
};

bool wants_gradient(const Tensor& q, const Tensor& k, const Tensor& w) {
  FULGUR_CHECK(k.dim() == 2 || !k.requires_grad() || !at::GradMode::is_enabled(),
               "[indexer_kl] expected groups of keys to be constants, got keys that want a gradient");
  return at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || w.requires_grad());
}

Tensor dense_autograd(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& aq, const Tensor& ak, const Tensor& alse,
                      const Tensor& visible, double scale) {
  return DenseFunction::apply(q, k, w, aq, ak, alse, visible, scale, wants_gradient(q, k, w));
}

Tensor sparse_autograd(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& selected, const Tensor& target) {
  return SparseFunction::apply(q, k, w, selected, target, wants_gradient(q, k, w));
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def(
      "indexer_kl_dense(Tensor q, Tensor k, Tensor w, Tensor attention_q, Tensor attention_k, Tensor attention_lse,"
      " Tensor visible, float scale) -> Tensor");
  m.def(
      "indexer_kl_dense_backward(Tensor dkl, Tensor q, Tensor k, Tensor w, Tensor attention_q, Tensor attention_k,"
      " Tensor attention_lse, Tensor visible, float scale) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("indexer_kl_sparse(Tensor q, Tensor k, Tensor w, Tensor selected, Tensor target) -> Tensor");
  m.def(
      "indexer_kl_sparse_backward(Tensor dkl, Tensor q, Tensor k, Tensor w, Tensor selected, Tensor target)"
      " -> (Tensor, Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("indexer_kl_dense", dense_cpu);
  m.impl("indexer_kl_dense_backward", dense_backward_cpu);
  m.impl("indexer_kl_sparse", sparse_cpu);
  m.impl("indexer_kl_sparse_backward", sparse_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("indexer_kl_dense", [](const Tensor& q, const Tensor&, const Tensor& w, const Tensor&, const Tensor&, const Tensor&,
                                const Tensor&, double) { return rows_meta(q, w); });
  m.impl("indexer_kl_dense_backward",
         [](const Tensor&, const Tensor& q, const Tensor& k, const Tensor& w, const Tensor&, const Tensor&, const Tensor&,
            const Tensor&, double) { return gradients_meta(q, k, w); });
  m.impl("indexer_kl_sparse",
         [](const Tensor& q, const Tensor&, const Tensor& w, const Tensor&, const Tensor&) { return rows_meta(q, w); });
  m.impl("indexer_kl_sparse_backward", [](const Tensor&, const Tensor& q, const Tensor& k, const Tensor& w, const Tensor&,
                                          const Tensor&) { return gradients_meta(q, k, w); });
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) {
  m.impl("indexer_kl_dense", dense_autograd);
  m.impl("indexer_kl_sparse", sparse_autograd);
}

}  // namespace

Tensor indexer_kl_dense(const Tensor& q_NJD, const Tensor& k_SD, const Tensor& w_NJ, const Tensor& aq_NHE, const Tensor& ak_SHE,
                        const Tensor& lse_NH, const Tensor& visible_N2, double scale) {
  static const auto op = typed<Dense>("indexer_kl_dense");
  return op.call(q_NJD, k_SD, w_NJ, aq_NHE, ak_SHE, lse_NH, visible_N2, scale);
}

Tensor indexer_kl_sparse(const Tensor& q_NJD, const Tensor& k_SD, const Tensor& w_NJ, const Tensor& selected_NK,
                         const Tensor& target_NK) {
  static const auto op = typed<Sparse>("indexer_kl_sparse");
  return op.call(q_NJD, k_SD, w_NJ, selected_NK, target_NK);
}

}  // namespace fulgur::ops
