// FP8 e4m3 and its block scales (spec D.1, D.2, D.4), bit for bit, and the Hadamard rotation (spec C, step 5).
// Scales multiply: value = e4m3 * scale. Thread-safe. Throws InputError when sizes disagree.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

namespace fulgur::ops {

// How a group's scale follows from its largest magnitude.
//   pow2: amax floored to 1e-4, amax * fl32(1/448) rounded up to a power of two (ue8m0; DeepSeek's rule)
//   plain: amax floored to 1e-4, amax * fl32(1/448)
//   cache: amax * fl32(1/448) floored to 1e-4, rounded up to a power of two (FlashMLA's rows, spec D.4)
enum class ScaleRule { pow2, plain, cache };

// Bytes e4m3fn, uint8: clamp to +-448, nearest even, NaN -> 0x7f.
at::Tensor to_e4m3(const at::Tensor& x);
at::Tensor from_e4m3(const at::Tensor& bytes);  // f32

// Rows [R, C] in groups of 1 x 128: {bytes [R, C], scales [R, ceil(C/128)]}.
std::tuple<at::Tensor, at::Tensor> quantize_rows(const at::Tensor& x_RC, ScaleRule rule);
// Weights [R, C] in blocks of 128 x 128, the last ones partial: {bytes, scales [ceil(R/128), ceil(C/128)]}.
std::tuple<at::Tensor, at::Tensor> quantize_blocks(const at::Tensor& x_RC, ScaleRule rule);
at::Tensor dequantize_rows(const at::Tensor& bytes_RC, const at::Tensor& scales);
at::Tensor dequantize_blocks(const at::Tensor& bytes_RC, const at::Tensor& scales);

// The last dimension of f32 or bf16 quantised in groups of at most 128 (pow2) and dequantised again; straight-through gradient.
at::Tensor simulate_fp8(const at::Tensor& x);

// Sylvester-ordered Walsh-Hadamard transform of the last dimension (a power of two), times n^-0.5. Its own inverse.
at::Tensor hadamard(const at::Tensor& x);

namespace reference {
at::Tensor to_e4m3(const at::Tensor& x);
at::Tensor simulate_fp8(const at::Tensor& x);
at::Tensor hadamard(const at::Tensor& x);
}  // namespace reference

}  // namespace fulgur::ops
