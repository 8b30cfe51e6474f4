// YaRN frequencies and softmax scale, spec A.3. No torch.
#pragma once

#include <vector>

#include "fulgur/model/config.h"

namespace fulgur {

// f'_i for i in [0, qk_rope_head_dim / 2): rope_theta^(-2i/P), and with rope_scaling the YaRN blend towards f / factor.
std::vector<float> rope_frequencies(const ModelConfig& config);

// (nope + rope)^-0.5, times the square of 0.1 * mscale_all_dim * ln(factor) + 1 under YaRN.
double softmax_scale(const ModelConfig& config);

}  // namespace fulgur
