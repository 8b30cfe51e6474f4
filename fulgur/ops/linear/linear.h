// Products with weights, row-invariant, with gradients. Shapes: N rows, I inputs, O outputs, H heads.
//
// Types: x and y are f32 or bf16 (the same); a weight is f32 (the master copy; rounded to bf16 as it is read when x is
// bf16) or bf16. Accumulation is f32. Weight gradients have the weight's type and reduce over rows in ascending order.
// Throws InputError when shapes or types disagree. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include "fulgur/ops/formats.h"

namespace fulgur::ops {

// y_NO = x_NI * weight_OI^T. x may have any leading dimensions.     Cost 2*N*I*O FLOP.
at::Tensor linear(const at::Tensor& x_NI, const at::Tensor& weight_OI);

// y_NHO[n,h] = x_NHI[n,h] * weight_HIO[h]: one weight for each head; strided (sliced, transposed) weights are fine.
at::Tensor head_linear(const at::Tensor& x_NHI, const at::Tensor& weight_HIO);

// A weight [.., O, I] as inference keeps it, read at the speed of memory: panels of 16 outputs (gemm.h), a tensor [.., O / 16,
// lines, 16] whose type tells the format (ops/formats.h): f32 or bf16, float8_e4m3fn, int8, uint8 for int4. linear, head_linear
// (as [heads, outputs, inputs] before), experts and logits take it in place of the weight; plain ones give the same bits. By
// integers a row is rounded to integers too, to +-63 in groups of 128 inputs: a product still depends on its own row alone.
// There is no gradient, and rows of bf16 need plain weights of bf16. Sizes that a format cannot hold stay plain (int4: inputs in
// 32s), and what is no multiple of 16 outputs and 2 inputs stays as it is.
at::Tensor pack(const at::Tensor& weight_OI, WeightFormat format = WeightFormat::plain);

// What a packed weight holds, f32 [.., O, I].
at::Tensor unpack(const at::Tensor& packed);

namespace reference {
at::Tensor linear(const at::Tensor& x_NI, const at::Tensor& weight_OI);
at::Tensor head_linear(const at::Tensor& x_NHI, const at::Tensor& weight_HIO);
}  // namespace reference

}  // namespace fulgur::ops
