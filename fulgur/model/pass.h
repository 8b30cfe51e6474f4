// What all layers of one forward call share. Private to model/.
#pragma once

#include "fulgur/model/transformer.h"

namespace fulgur {

struct Transformer::Pass {
  const Batch& batch;
  const ForwardOptions& options;
  Cache* cache = nullptr;
  std::vector<LayerLosses>* losses = nullptr;
  ops::Rotation rotation;
  at::Tensor best_NK = {};  // the layer's keys of most attention, where these are wanted

  LayerTrace* trace() const { return options.trace ? &options.trace->back() : nullptr; }
  Cache::Layer* layer_cache(int64_t index) const { return cache ? &cache->layers.at(index) : nullptr; }
};

// The choice a pass is made to repeat; null: none.
inline const at::Tensor* forced(const ForwardOptions& options, std::vector<at::Tensor> Replay::*choices, int64_t index) {
  if (!options.replay) return nullptr;
  const auto& all = options.replay->*choices;
  return index < int64_t(all.size()) && all[index].defined() ? &all[index] : nullptr;
}

}  // namespace fulgur
