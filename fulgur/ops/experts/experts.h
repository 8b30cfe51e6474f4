// Feed-forward layers: SwiGLU, and a mixture of SwiGLU experts over rows grouped by expert. Spec A.4. Row-invariant:
// a token's routed outputs are added in f32 by ascending expert id, the shared expert's last, then rounded once.
// Rows are f32 or bf16, weights f32 masters (rounded to bf16 as they are read when rows are bf16). Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

namespace fulgur::ops {

// silu(gate) * up, in f32, rounded once; any equal shapes.
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);

// y_n = sum_i weights[n,i] * down_e(swiglu(gate_e(x_n), up_e(x_n))) + shared_n, with e = ids[n,i] ascending.
//   x_ND, shared_ND; ids_Nk int32 ascending; weights_Nk f32; gate_EID, up_EID, down_EDI.
// Cost 6*N*k*D*I FLOP forward. Throws InputError when shapes disagree or an id is out of range.
at::Tensor experts(const at::Tensor& x_ND, const at::Tensor& ids_Nk, const at::Tensor& weights_Nk, const at::Tensor& gate_EID,
                   const at::Tensor& up_EID, const at::Tensor& down_EDI, const at::Tensor& shared_ND);

namespace reference {
at::Tensor swiglu(const at::Tensor& gate, const at::Tensor& up);
at::Tensor experts(const at::Tensor& x_ND, const at::Tensor& ids_Nk, const at::Tensor& weights_Nk, const at::Tensor& gate_EID,
                   const at::Tensor& up_EID, const at::Tensor& down_EDI, const at::Tensor& shared_ND);
}  // namespace reference

}  // namespace fulgur::ops
