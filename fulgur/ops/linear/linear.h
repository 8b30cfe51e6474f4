// Products with weights, row-invariant, with gradients. Shapes: N rows, I inputs, O outputs, H heads.
//
// Types: x and y are f32 or bf16 (the same); a weight is f32 (the master copy; rounded to bf16 as it is read when x is
// bf16) or bf16. Accumulation is f32. Weight gradients have the weight's type and reduce over rows in ascending order.
// Throws InputError when shapes or types disagree. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

// y_NO = x_NI * weight_OI^T. x may have any leading dimensions.     Cost 2*N*I*O FLOP.
at::Tensor linear(const at::Tensor& x_NI, const at::Tensor& weight_OI);

// y_NHO[n,h] = x_NHI[n,h] * weight_HIO[h]: one weight for each head; strided (sliced, transposed) weights are fine.
at::Tensor head_linear(const at::Tensor& x_NHI, const at::Tensor& weight_HIO);

// A weight [.., O, I] as inference keeps it, read at the speed of memory: f32 [.., O/16, I, 16]; bf16 of the same size, but with
// two inputs of an output side by side, [.., O/16, I/2, 16, 2]. linear, head_linear (as [heads, outputs, inputs] before), experts
// and logits take it in place of the weight and give the same bits; there is no gradient, and rows of bf16 need weights of bf16.
// Returns the weight itself where O is not a multiple of 16 or I not of 2.
at::Tensor pack(const at::Tensor& weight_OI);

namespace reference {
at::Tensor linear(const at::Tensor& x_NI, const at::Tensor& weight_OI);
at::Tensor head_linear(const at::Tensor& x_NHI, const at::Tensor& weight_HIO);
}  // namespace reference

}  // namespace fulgur::ops
