#include "fulgur/ops/log_prob/head.h"

namespace fulgur::ops {
namespace {

const void* at_row(const Tensor& rows, int64_t row) {
  return static_cast<const char*>(rows.const_data_ptr()) + row * rows.size(1) * rows.element_size();
}

}  // namespace

void logits_into(const Rows& rows, int64_t first, int64_t count, const Tensor& weight, float* out) {
  GemmParams p = Weight{weight, 0}.product(rows.x, "log_prob");
  rows.give(p, first);
  p.c = out, p.M = count, p.c_row = p.N;
  gemm(p);
}

void check_head(const Tensor& x, const Tensor& weight) {
  Weight w{weight, 0};
  FULGUR_CHECK(x.dim() == 2 && w.valid() && x.size(1) == w.inputs(),
               "[log_prob] expected rows [N, D] and a head [V, D], or packed, got ", x.sizes(), " and ", weight.sizes());
}

void check_targets(const Tensor& targets, int64_t N, int64_t V) {
  FULGUR_CHECK(targets.dim() == 1 && targets.size(0) == N, "[log_prob] expected ", N, " targets, got ", targets.sizes());
  const int* target = targets.const_data_ptr<int>();
  for (int64_t i = 0; i < N; ++i)
    FULGUR_CHECK(target[i] >= -1 && target[i] < V, "[log_prob] expected targets below ", V, ", got ", target[i]);
}

// dx = dlogits W and dW += dlogits^T x of one chunk.
void add_products(const Tensor& dlogits, const Tensor& x, const Tensor& weight, int64_t first, int64_t rows, const Tensor& dx,
                  const Tensor& dweight) {
  int64_t D = x.size(1), V = weight.size(0);
  auto x_type = storage(x, "log_prob"), w_type = storage(weight, "log_prob");
  GemmParams to_x{.a = dlogits.const_data_ptr(),
                  .b = weight.const_data_ptr(),
                  .c = const_cast<void*>(at_row(dx, first)),
                  .M = rows,
                  .N = D,
                  .K = V,
                  .a_row = V,
                  .a_col = 1,
                  .b_row = D,
                  .b_col = 1,
                  .c_row = D,
                  .b_type = w_type,
                  .round_b_to_bf16 = x_type == Storage::bf16 && w_type == Storage::f32};
  GemmParams to_weight{.a = dlogits.const_data_ptr(),
                       .b = at_row(x, first),
                       .c = dweight.mutable_data_ptr(),
                       .M = V,
                       .N = D,
                       .K = rows,
                       .a_row = 1,
                       .a_col = V,
                       .b_row = D,
                       .b_col = 1,
                       .c_row = D,
                       .b_type = x_type,
                       .accumulate = true};
  GemmParams both[] = {to_x, to_weight};
  gemm(both);
}

}  // namespace fulgur::ops
