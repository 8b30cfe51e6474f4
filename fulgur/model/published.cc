#include "fulgur/model/published.h"

#include "fulgur/base/error.h"
#include "fulgur/ops/quantize/quantize.h"

namespace fulgur {
namespace {

constexpr std::string_view kScale = "_scale_inv";

bool is_fp8(const std::string& name, const at::Tensor& tensor) {
  auto ends = [&](auto... end) { return (name.ends_with(end) || ...); };
  bool linear = ends("_proj.weight", ".kv_a_proj_with_mqa.weight", ".indexer.wq_b.weight", ".indexer.wk.weight");
  return tensor.dim() == 2 && linear && !ends(".weights_proj.weight", ".eh_proj.weight");
}

}  // namespace

Precision precision(const std::string& name) {
  FULGUR_CHECK(name == "f32" || name == "bf16" || name == "fp8", "[convert] expected f32, bf16 or fp8, got ", name);
  return name == "f32" ? Precision::f32 : name == "bf16" ? Precision::bf16 : Precision::fp8;
}

std::map<std::string, at::Tensor> published(const std::map<std::string, at::Tensor>& tensors, Precision to) {
  std::map<std::string, at::Tensor> out;
  for (const auto& [name, tensor] : tensors) {
    if (to == Precision::fp8 && is_fp8(name, tensor)) {
      auto [bytes, scales] = ops::quantize_blocks(tensor.to(at::kFloat).contiguous(), ops::ScaleRule::pow2);
      out[name] = bytes.view(at::kFloat8_e4m3fn), out[name + std::string(kScale)] = scales;
    } else {
      bool single = to == Precision::f32 || name.ends_with("e_score_correction_bias");
      out[name] = tensor.to(single ? at::kFloat : at::kBFloat16).contiguous();
    }
  }
  return out;
}

std::map<std::string, at::Tensor> unpublished(const std::map<std::string, at::Tensor>& tensors) {
  std::map<std::string, at::Tensor> out;
  for (const auto& [name, tensor] : tensors) {
    if (name.ends_with(kScale)) {
      auto weight = name.substr(0, name.size() - kScale.size());
      FULGUR_CHECK(tensors.contains(weight), "[weights] tensor ", name, ": expected ", weight, " beside it, got none");
      continue;
    }
    auto scale = tensors.find(name + std::string(kScale));
    if (scale == tensors.end()) {
      FULGUR_CHECK(tensor.scalar_type() != at::kFloat8_e4m3fn, "[weights] tensor ", name, ": expected ", name, kScale,
                   " beside what is stored in FP8, got none");
      out[name] = tensor;
      continue;
    }
    FULGUR_CHECK(tensor.dim() == 2 && tensor.scalar_type() == at::kFloat8_e4m3fn, "[weights] tensor ", name,
                 ": expected a matrix in FP8, got ", tensor.scalar_type(), " ", tensor.sizes());
    std::vector<int64_t> blocks{(tensor.size(0) + 127) / 128, (tensor.size(1) + 127) / 128};
    FULGUR_CHECK(scale->second.sizes() == at::IntArrayRef(blocks), "[weights] tensor ", scale->first, ": expected ",
                 at::IntArrayRef(blocks), ", got ", scale->second.sizes());
    out[name] = ops::dequantize_blocks(tensor.view(at::kByte), scale->second.to(at::kFloat).contiguous());
  }
  return out;
}

}  // namespace fulgur
