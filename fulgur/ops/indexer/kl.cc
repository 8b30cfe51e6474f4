// The indexer's KL losses, dense (warm-up) and sparse. See indexer.h.
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer/kernels.h"
#include "fulgur/ops/op.h"
#include "fulgur/ops/visible.h"

namespace fulgur::ops {
namespace {

using Dense = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                         const Tensor&, double);
using DenseBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                         const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                         const Tensor&, double);
using Sparse = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&);
using SparseBackward = std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                          const Tensor&, const Tensor&, const Tensor&);

IndexerKlParams indexer_params(const Tensor& q, const Tensor& k, const Tensor& w) {
  FULGUR_CHECK(q.dim() == 3 && k.dim() == 2 && q.size(2) == k.size(1) && q.scalar_type() == k.scalar_type(),
               "[indexer_kl] expected q [N, J, D] and k [S, D] of one type, got ", q.sizes(), " and ", k.sizes());
  FULGUR_CHECK(w.dim() == 2 && w.size(0) == q.size(0) && w.size(1) == q.size(1) && w.scalar_type() == at::kFloat,
               "[indexer_kl] expected float32 weights [", q.size(0), ", ", q.size(1), "], got ", w.sizes());
  IndexerKlParams params{};
  params.indexer = {q.const_data_ptr(), k.const_data_ptr(), w.const_data_ptr<float>(), nullptr,
                    q.size(1),          q.size(2),          storage(q, "indexer_kl")};
  return params;
}

IndexerKlParams dense_params(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& aq, const Tensor& ak,
                             const Tensor& lse, const Tensor& visible, double scale) {
  auto params = indexer_params(q, k, w);
  check_visible(visible, q.size(0), k.size(0), "indexer_kl");
  FULGUR_CHECK(aq.dim() == 3 && ak.dim() == 3 && aq.size(0) == q.size(0) && ak.size(0) == k.size(0) && aq.size(1) == ak.size(1) &&
                   aq.size(2) == ak.size(2) && lse.size(0) == aq.size(0) && lse.size(1) == aq.size(1),
               "[indexer_kl] expected attention q [N, H, E], k [S, H, E] and lse [N, H], got ", aq.sizes(), ", ", ak.sizes(),
               ", ", lse.sizes());
  params.indexer.visible = visible.const_data_ptr<int>();
  params.aq = aq.const_data_ptr(), params.ak = ak.const_data_ptr();
  params.attention_lse = lse.const_data_ptr<float>();
  params.H = aq.size(1), params.E = aq.size(2);
  params.scale = float(scale);
  params.attention_type = storage(aq, "indexer_kl");
  return params;
}

// {kl_N, lse_N of the scores}
std::tuple<Tensor, Tensor> dense_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& w_in, const Tensor& aq_in,
                                     const Tensor& ak_in, const Tensor& alse_in, const Tensor& visible_in, double scale) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous(), aq = aq_in.contiguous();
  auto ak = ak_in.contiguous(), alse = alse_in.contiguous(), visible = visible_in.contiguous();
  auto params = dense_params(q, k, w, aq, ak, alse, visible, scale);
  auto kl = at::empty({q.size(0)}, w.options()), lse = at::empty({q.size(0)}, w.options());
  params.kl = kl.mutable_data_ptr<float>(), params.lse = lse.mutable_data_ptr<float>();
  auto blocks = row_blocks(visible, kIndexerRows);
  auto kernel = FULGUR_CALL(indexer_kl_dense_block);
  parallel_for(int64_t(blocks.size()), [&](int64_t i) { kernel(params, blocks[i].first, blocks[i].last); });
  return {kl, lse};
}

std::tuple<Tensor, Tensor> dense_meta(const Tensor& q, const Tensor&, const Tensor& w, const Tensor&, const Tensor&,
                                      const Tensor&, const Tensor&, double) {
  return {at::empty_symint({q.sym_size(0)}, w.options()), at::empty_symint({q.sym_size(0)}, w.options())};
}

struct Gradients {
  Tensor dq, dk, dw;  // f32
  Gradients(const Tensor& q, const Tensor& k, const Tensor& w, IndexerKlParams& params)
      : dq(at::zeros(q.sizes(), w.options())),
        dk(at::zeros(k.sizes(), w.options())),
        dw(at::zeros(w.sizes(), w.options())) {
    params.dq = dq.mutable_data_ptr<float>();
    params.dk = dk.mutable_data_ptr<float>();
    params.dw = dw.mutable_data_ptr<float>();
  }
  std::tuple<Tensor, Tensor, Tensor> as(at::ScalarType type) const { return {dq.to(type), dk.to(type), dw}; }
};

// Documents are the tasks: within one, rows add to its keys in ascending order.
std::tuple<Tensor, Tensor, Tensor> dense_backward_cpu(const Tensor& dkl_in, const Tensor& q_in, const Tensor& k_in,
                                                      const Tensor& w_in, const Tensor& aq_in, const Tensor& ak_in,
                                                      const Tensor& alse_in, const Tensor& visible_in, const Tensor& lse_in,
                                                      double scale) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous(), aq = aq_in.contiguous();
  auto ak = ak_in.contiguous(), alse = alse_in.contiguous(), visible = visible_in.contiguous();
  auto dkl = dkl_in.contiguous(), lse = lse_in.contiguous();
  auto params = dense_params(q, k, w, aq, ak, alse, visible, scale);
  Gradients gradients(q, k, w, params);
  params.dkl = dkl.const_data_ptr<float>();
  params.lse = const_cast<float*>(lse.const_data_ptr<float>());
  auto tasks = key_disjoint(visible, kIndexerRows);
  auto kernel = FULGUR_CALL(indexer_kl_dense_backward_block);
  parallel_for(int64_t(tasks.size()), [&](int64_t i) {
    for (const auto& block : tasks[i]) kernel(params, block.first, block.last);
  });
  return gradients.as(q.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> like_inputs(const Tensor& q, const Tensor& k, const Tensor& w) {
  auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  return {like(q), like(k), like(w)};
}

std::tuple<Tensor, Tensor, Tensor> dense_backward_meta(const Tensor&, const Tensor& q, const Tensor& k, const Tensor& w,
                                                       const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                                       double) {
  return like_inputs(q, k, w);
}

IndexerKlParams sparse_params(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& selected, const Tensor& target) {
  auto params = indexer_params(q, k, w);
  FULGUR_CHECK(selected.dim() == 2 && selected.size(0) == q.size(0) && selected.scalar_type() == at::kInt &&
                   selected.sizes() == target.sizes() && target.scalar_type() == at::kFloat,
               "[indexer_kl] expected an int32 selection and a float32 target [", q.size(0), ", K], got ", selected.sizes(),
               " and ", target.sizes());
  const int* at = selected.const_data_ptr<int>();
  for (int64_t i = 0; i < selected.numel(); ++i)
    FULGUR_CHECK(at[i] >= -1 && at[i] < k.size(0), "[indexer_kl] expected keys below ", k.size(0), ", got ", at[i]);
  params.selected = at;
  params.target = target.const_data_ptr<float>();
  params.K = selected.size(1);
  return params;
}

std::tuple<Tensor, Tensor> sparse_cpu(const Tensor& q_in, const Tensor& k_in, const Tensor& w_in, const Tensor& selected_in,
                                      const Tensor& target_in) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous();
  auto selected = selected_in.contiguous(), target = target_in.contiguous();
  auto params = sparse_params(q, k, w, selected, target);
  auto kl = at::empty({q.size(0)}, w.options()), lse = at::empty({q.size(0)}, w.options());
  params.kl = kl.mutable_data_ptr<float>(), params.lse = lse.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(indexer_kl_sparse_row);
  parallel_for(q.size(0), [&](int64_t row) { kernel(params, row); });
  return {kl, lse};
}

std::tuple<Tensor, Tensor> sparse_meta(const Tensor& q, const Tensor&, const Tensor& w, const Tensor&, const Tensor&) {
  return {at::empty_symint({q.sym_size(0)}, w.options()), at::empty_symint({q.sym_size(0)}, w.options())};
}

// As in sparse_mla's backward pass: a chunk's contributions in parallel over rows, then added over columns.
std::tuple<Tensor, Tensor, Tensor> sparse_backward_cpu(const Tensor& dkl_in, const Tensor& q_in, const Tensor& k_in,
                                                       const Tensor& w_in, const Tensor& selected_in, const Tensor& target_in,
                                                       const Tensor& lse_in) {
  auto q = q_in.contiguous(), k = k_in.contiguous(), w = w_in.contiguous(), lse = lse_in.contiguous();
  auto selected = selected_in.contiguous(), target = target_in.contiguous(), dkl = dkl_in.contiguous();
  auto params = sparse_params(q, k, w, selected, target);
  Gradients gradients(q, k, w, params);
  int64_t N = q.size(0), K = params.K, D = q.size(2);
  int64_t chunk = std::clamp<int64_t>((int64_t(1) << 21) / std::max<int64_t>(1, K * D), 4, 256);
  auto contribution = at::empty({chunk, K, D}, w.options());
  params.dkl = dkl.const_data_ptr<float>();
  params.lse = const_cast<float*>(lse.const_data_ptr<float>());
  params.contribution = contribution.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(indexer_kl_sparse_backward_row);
  constexpr int64_t kColumns = 32;
  for (int64_t row = 0; row < N; row += chunk) {
    int64_t rows = std::min(chunk, N - row);
    parallel_for(rows, [&](int64_t i) { kernel(params, row + i, i); });
    parallel_for((D + kColumns - 1) / kColumns, [&](int64_t block) {
      int64_t first = block * kColumns, last = std::min(D, first + kColumns);
      for (int64_t i = 0; i < rows; ++i) {
        const float* from = params.contribution + i * K * D;
        for (int64_t j = 0; j < K; ++j) {
          int64_t key = params.selected[(row + i) * K + j];
          if (key < 0) continue;
          for (int64_t d = first; d < last; ++d) params.dk[key * D + d] += from[d];
          from += D;
        }
      }
    });
  }
  return gradients.as(q.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> sparse_backward_meta(const Tensor&, const Tensor& q, const Tensor& k, const Tensor& w,
                                                        const Tensor&, const Tensor&, const Tensor&) {
  return like_inputs(q, k, w);
}

struct DenseFunction : torch::autograd::Function<DenseFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& aq,
                               const Tensor& ak, const Tensor& alse, const Tensor& visible, double scale) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = typed<Dense>("indexer_kl_dense");
    auto [kl, lse] = op.call(q, k, w, aq, ak, alse, visible, scale);
    ctx->save_for_backward({q, k, w, aq, ak, alse, visible, lse});
    ctx->saved_data["scale"] = scale;
    ctx->mark_non_differentiable({lse});
    return {kl, lse};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<DenseBackward>("indexer_kl_dense_backward");
    auto s = ctx->get_saved_variables();
    auto [dq, dk, dw] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], ctx->saved_data["scale"].toDouble());
    return {dq, dk, dw, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

struct SparseFunction : torch::autograd::Function<SparseFunction> {
  static variable_list forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& selected,
                               const Tensor& target) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = typed<Sparse>("indexer_kl_sparse");
    auto [kl, lse] = op.call(q, k, w, selected, target);
    ctx->save_for_backward({q, k, w, selected, target, lse});
    ctx->mark_non_differentiable({lse});
    return {kl, lse};
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<SparseBackward>("indexer_kl_sparse_backward");
    auto s = ctx->get_saved_variables();
    auto [dq, dk, dw] = op.call(grads[0], s[0], s[1], s[2], s[3], s[4], s[5]);
    return {dq, dk, dw, Tensor(), Tensor()};
  }
};

std::tuple<Tensor, Tensor> dense_autograd(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& aq, const Tensor& ak,
                                          const Tensor& alse, const Tensor& visible, double scale) {
  auto out = DenseFunction::apply(q, k, w, aq, ak, alse, visible, scale);
  return {out[0], out[1]};
}

std::tuple<Tensor, Tensor> sparse_autograd(const Tensor& q, const Tensor& k, const Tensor& w, const Tensor& selected,
                                           const Tensor& target) {
  auto out = SparseFunction::apply(q, k, w, selected, target);
  return {out[0], out[1]};
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def(
      "indexer_kl_dense(Tensor q, Tensor k, Tensor w, Tensor attention_q, Tensor attention_k, Tensor attention_lse,"
      " Tensor visible, float scale) -> (Tensor, Tensor)");
  m.def(
      "indexer_kl_dense_backward(Tensor dkl, Tensor q, Tensor k, Tensor w, Tensor attention_q, Tensor attention_k,"
      " Tensor attention_lse, Tensor visible, Tensor lse, float scale) -> (Tensor, Tensor, Tensor)");
  m.def("indexer_kl_sparse(Tensor q, Tensor k, Tensor w, Tensor selected, Tensor target) -> (Tensor, Tensor)");
  m.def(
      "indexer_kl_sparse_backward(Tensor dkl, Tensor q, Tensor k, Tensor w, Tensor selected, Tensor target,"
      " Tensor lse) -> (Tensor, Tensor, Tensor)");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("indexer_kl_dense", dense_cpu);
  m.impl("indexer_kl_dense_backward", dense_backward_cpu);
  m.impl("indexer_kl_sparse", sparse_cpu);
  m.impl("indexer_kl_sparse_backward", sparse_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("indexer_kl_dense", dense_meta);
  m.impl("indexer_kl_dense_backward", dense_backward_meta);
  m.impl("indexer_kl_sparse", sparse_meta);
  m.impl("indexer_kl_sparse_backward", sparse_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) {
  m.impl("indexer_kl_dense", dense_autograd);
  m.impl("indexer_kl_sparse", sparse_autograd);
}

}  // namespace

Tensor indexer_kl_dense(const Tensor& q_NJD, const Tensor& k_SD, const Tensor& w_NJ, const Tensor& aq_NHE, const Tensor& ak_SHE,
                        const Tensor& lse_NH, const Tensor& visible_N2, double scale) {
  static const auto op = typed<Dense>("indexer_kl_dense");
  return std::get<0>(op.call(q_NJD, k_SD, w_NJ, aq_NHE, ak_SHE, lse_NH, visible_N2, scale));
}

Tensor indexer_kl_sparse(const Tensor& q_NJD, const Tensor& k_SD, const Tensor& w_NJ, const Tensor& selected_NK,
                         const Tensor& target_NK) {
  static const auto op = typed<Sparse>("indexer_kl_sparse");
  return std::get<0>(op.call(q_NJD, k_SD, w_NJ, selected_NK, target_NK));
}

}  // namespace fulgur::ops
