#include "fulgur/model/rope_table.h"

#include <algorithm>
#include <cmath>

namespace fulgur {

std::vector<float> rope_frequencies(const ModelConfig& config) {
  double size = double(config.qk_rope_head_dim), theta = config.rope_theta;
  std::vector<float> out;
  double low = 0, high = 0;
  if (config.rope_scaling) {
    // The pair that turns `rotations` times within the original length.
    auto pair = [&](double rotations) {
      double length = double(config.rope_scaling->original_max_position_embeddings);
      return size * std::log(length / (rotations * 2 * M_PI)) / (2 * std::log(theta));
    };
    low = std::max(std::floor(pair(config.rope_scaling->beta_fast)), 0.0);
    high = std::min(std::ceil(pair(config.rope_scaling->beta_slow)), size - 1);
    if (low == high) high += 0.001;
  }
  for (int64_t i = 0; i < config.qk_rope_head_dim / 2; ++i) {
    double frequency = std::pow(theta, -2.0 * double(i) / size);
    if (config.rope_scaling) {
      double ramp = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
      frequency = frequency / config.rope_scaling->factor * ramp + frequency * (1 - ramp);
    }
    out.push_back(float(frequency));
  }
  return out;
}

double softmax_scale(const ModelConfig& config) {
  double scale = 1 / std::sqrt(double(config.qk_nope_head_dim + config.qk_rope_head_dim));
  if (!config.rope_scaling || config.rope_scaling->factor <= 1) return scale;
  double mscale = 0.1 * config.rope_scaling->mscale_all_dim * std::log(config.rope_scaling->factor) + 1;
  return scale * mscale * mscale;
}

}  // namespace fulgur
