// The official tensor names with their shapes (spec A.6), MTP layer and indexer included.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "fulgur/model/config.h"

namespace fulgur {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // [out, in] as in PyTorch
};

// An expert's own name, of one with '*' in place of its number.
std::string expert_name(const std::string& name, int64_t expert);

std::vector<TensorSpec> tensor_specs(const ModelConfig& config);

// One InputError line for the first tensor that is missing, has another shape, or does not belong to the model.
void check_weights(const ModelConfig& config, const std::map<std::string, at::Tensor>& tensors);

}  // namespace fulgur
