// A language-model head over chunks of rows: what the operations of this folder share.
#pragma once

#include "fulgur/ops/linear/weight.h"

namespace fulgur::ops {

constexpr int64_t kChunk = 512;  // rows whose logits are held at once; a multiple of the GEMM's chain length

void check_head(const Tensor& x_ND, const Tensor& weight_VD);
void check_targets(const Tensor& targets_N, int64_t N, int64_t V);  // int32, -1 to V - 1

// logits of rows [first, first + count) into out [count, V].
void logits_into(const Rows& rows, int64_t first, int64_t count, const Tensor& weight, float* out);

// dx = dlogits W and dW += dlogits^T x of one chunk.
void add_products(const Tensor& dlogits, const Tensor& x, const Tensor& weight, int64_t first, int64_t rows, const Tensor& dx,
                  const Tensor& dweight);

}  // namespace fulgur::ops
