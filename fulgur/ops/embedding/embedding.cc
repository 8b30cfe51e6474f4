#include "fulgur/ops/embedding/embedding.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "fulgur/ops/op.h"

namespace fulgur::ops {
namespace {

using Forward = Tensor(const Tensor&, const Tensor&, bool);
using Backward = Tensor(const Tensor&, const Tensor&, c10::SymInt);

constexpr int64_t kBlock = 64;  // rows a task writes

Tensor embedding_cpu(const Tensor& weight_in, const Tensor& ids_in, bool bf16) {
  auto weight = weight_in.contiguous(), ids = ids_in.to(at::kInt).contiguous();
  storage(weight, "embedding");  // f32 or bf16
  int64_t V = weight.size(0), N = ids.numel(), row_bytes = weight.size(1) * weight.element_size();
  auto rows = at::empty({N, weight.size(1)}, weight.options());
  const int* id = ids.const_data_ptr<int>();
  const auto* from = static_cast<const char*>(weight.const_data_ptr());
  auto* to = static_cast<char*>(rows.mutable_data_ptr());
  parallel_for((N + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t i = block * kBlock; i < std::min(N, (block + 1) * kBlock); ++i) {
      FULGUR_CHECK(id[i] >= -1 && id[i] < V, "[embedding] expected token ids below ", V, ", got ", id[i]);
      if (id[i] < 0) std::memset(to + i * row_bytes, 0, row_bytes);
      else std::memcpy(to + i * row_bytes, from + id[i] * row_bytes, row_bytes);
    }
  });
  return rows.to(bf16 ? at::kBFloat16 : at::kFloat);
}

Tensor embedding_meta(const Tensor& weight, const Tensor& ids, bool bf16) {
  return at::empty_symint({ids.sym_size(0), weight.sym_size(1)}, weight.options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
}

// Each row of the table is one task's, and adds the gradients of its tokens in order.
Tensor embedding_backward_cpu(const Tensor& dy_in, const Tensor& ids_in, c10::SymInt vocabulary) {
  auto dy = dy_in.to(at::kFloat).contiguous(), ids = ids_in.to(at::kInt).contiguous();
  int64_t N = dy.size(0), D = dy.size(1), V = vocabulary.expect_int();
  auto dweight = at::empty({V, D}, dy.options());
  const int* id = ids.const_data_ptr<int>();
  const float* from = dy.const_data_ptr<float>();
  float* to = dweight.mutable_data_ptr<float>();
  // Counting sort: tokens[end[v - 1]..end[v]) are those of id v.
  std::vector<int64_t> end(V + 1), tokens(N);
  for (int64_t i = 0; i < N; ++i) ++end[id[i] + 1];
  end[0] = 0;  // id -1 takes no gradient
  std::partial_sum(end.begin(), end.end(), end.begin());
  for (int64_t i = 0; i < N; ++i)
    if (id[i] >= 0) tokens[end[id[i]]++] = i;
  parallel_for((V + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t v = block * kBlock; v < std::min(V, (block + 1) * kBlock); ++v) {
      float* sum = to + v * D;
      std::fill(sum, sum + D, 0.0f);
      for (int64_t t = v == 0 ? 0 : end[v - 1]; t < end[v]; ++t)
        for (int64_t d = 0; d < D; ++d) sum[d] += from[tokens[t] * D + d];
    }
  });
  return dweight;
}

Tensor embedding_backward_meta(const Tensor& dy, const Tensor&, c10::SymInt vocabulary) {
  return at::empty_symint({vocabulary, dy.sym_size(1)}, dy.options().dtype(at::kFloat));
}

struct EmbeddingFunction : torch::autograd::Function<EmbeddingFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& ids, bool bf16) {
    at::AutoDispatchBelowADInplaceOrView below;
    static const auto op = typed<Forward>("embedding");
    ctx->save_for_backward({ids});
    ctx->saved_data["vocabulary"] = weight.sym_size(0);
    return op.call(weight, ids, bf16);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    static const auto op = typed<Backward>("embedding_backward");
    auto dweight = op.call(grads[0], ctx->get_saved_variables()[0], ctx->saved_data["vocabulary"].toSymInt());
    return {dweight, Tensor(), Tensor()};
  }
};

Tensor embedding_autograd(const Tensor& weight, const Tensor& ids, bool bf16) {
  return EmbeddingFunction::apply(weight, ids, bf16);
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("embedding(Tensor weight, Tensor ids, bool bf16) -> Tensor");
  m.def("embedding_backward(Tensor dy, Tensor ids, SymInt vocabulary) -> Tensor");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("embedding", embedding_cpu);
  m.impl("embedding_backward", embedding_backward_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("embedding", embedding_meta);
  m.impl("embedding_backward", embedding_backward_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("embedding", embedding_autograd); }

}  // namespace

Tensor embedding(const Tensor& weight_VD, const Tensor& ids_N, at::ScalarType type) {
  static const auto op = typed<Forward>("embedding");
  return op.call(weight_VD, ids_N, type == at::kBFloat16);
}

}  // namespace fulgur::ops
