// Weights in the precisions checkpoints are published in (spec A.6).
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

namespace fulgur {

// f32; bf16, the correction bias f32; or DeepSeek's FP8: linear weights in blocks of 128 x 128 as e4m3 with `weight_scale_inv`,
// which multiplies, a power of two; embeddings, norms, head, gates, `weights_proj` and `eh_proj` in bf16.
enum class Precision { f32, bf16, fp8 };
Precision precision(const std::string& name);

// Tensors by official names, from f32 and back to it. Throws InputError that names a scale without its weight, or of another
// shape.
std::map<std::string, at::Tensor> published(const std::map<std::string, at::Tensor>& tensors, Precision to);
std::map<std::string, at::Tensor> unpublished(const std::map<std::string, at::Tensor>& tensors);

}  // namespace fulgur
