// Rotary position embedding with YaRN, and the two pairings V3.2 uses: the main attention rotates adjacent pairs
// (2j, 2j+1), the indexer halves (j, j + P/2). Spec A.3, B, C. Row-invariant, thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace fulgur::ops {

enum class Pairing { adjacent, halves };

// cos and sin of position * frequency, [N, P/2] f32; the angle is formed in f32.
struct Rotation {
  at::Tensor cos_NP, sin_NP;
};
Rotation rotation(const at::Tensor& positions_N, const std::vector<float>& frequencies);

// A copy of x with columns [offset, offset + P) rotated; x is [N, H, E], f32 or bf16, the rotation in f32.
// Throws InputError when the rotation does not fit the rows. Differentiable in x.
at::Tensor rope(const at::Tensor& x_NHE, const Rotation& rotation, int64_t offset, Pairing pairing);

namespace reference {
at::Tensor rope(const at::Tensor& x_NHE, const Rotation& rotation, int64_t offset, Pairing pairing);
}

}  // namespace fulgur::ops
