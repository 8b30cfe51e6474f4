// Experts of a model larger than memory: its file is memory-mapped, and the system drops the pages used least recently. What a
// token needs next is asked for before it is missed: a layer's experts all at once, in large reads, and those the next layer will
// probably need while this one computes. What is computed does not depend on it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "fulgur/model/weights.h"

namespace fulgur {

// Counted by layer and step: an expert that several rows of a step need counts once.
struct PagerStatistics {
  int64_t needed = 0;    // experts
  int64_t present = 0;   // of these, wholly in memory when they were needed
  int64_t foreseen = 0;  // of these, expected before
};

// Thread-safe.
class ExpertPager {
 public:
  explicit ExpertPager(const Weights& weights);
  ~ExpertPager();
  ExpertPager(const ExpertPager&) = delete;
  ExpertPager& operator=(const ExpertPager&) = delete;

  // A layer will probably need these experts [N, k]: read by a thread of its own.
  void expect(int64_t layer, const at::Tensor& experts_Nk);
  // It needs these now: whatever is missing is asked for.
  void need(int64_t layer, const at::Tensor& experts_Nk);

  PagerStatistics statistics() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fulgur
