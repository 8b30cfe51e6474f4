// The k best of a stream of scores, for kernels.cc files: larger first, then smaller index; NaN lowest, -0 equal to +0.
//
// Kept are the scores above a threshold, in a buffer of a few k; when it is full the exact k best stay and the k-th becomes
// the threshold. Of n scores in random order about k * (1 + ln(n / k)) are ever stored, the others cost one comparison of
// vectors: one pass over the scores, memory O(k). Nothing depends on the instruction set: the result is exact.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {

class TopK {
 public:
  void start(int64_t k) {
    k_ = k, count_ = 0, threshold_ = INT32_MIN;
    capacity_ = std::max<int64_t>(4 * k, 1024);
    if (int64_t(order_.size()) < capacity_ + kLanes) order_.resize(capacity_ + kLanes), index_.resize(capacity_ + kLanes);
  }

  // Scores of indices first, first + 1, ..., all above those added before.
  void add(const float* scores, int64_t count, int32_t first) {
    VecInt index = lane_numbers() + first;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes, index += kLanes) {
      VecInt order = order_of(load(scores + i));
      append(order, index, greater(order, threshold_));
    }
    if (i >= count) return;
    float tail[kLanes] = {};
    std::copy(scores + i, scores + count, tail);
    VecInt order = order_of(load(tail));
    append(order, index, greater(order, threshold_) & ((1u << (count - i)) - 1));
  }

  // Of all scores at once: a threshold guessed from one vector in many spares most of the buffering. Where it turns out too
  // high, all are looked at again.
  void add_all(const float* scores, int64_t count, int32_t first) {
    constexpr int64_t kSample = 128;
    int64_t stride = count / (kSample * kLanes) * kLanes;
    if (stride >= 8 * kLanes && capacity_ >= kSample * kLanes) {
      for (int64_t i = 0; i < kSample; ++i) store_int(order_.data() + i * kLanes, order_of(load(scores + i * stride)));
      count_ = kSample * kLanes;
      double expected = double(k_) * double(count_) / double(count);
      threshold_ = nth_best(std::min(count_, int64_t(expected + 4 * std::sqrt(expected)) + 1)) - 1;
      count_ = 0;
      add(scores, count, first);
      if (count_ >= k_) return;
      start(k_);
    }
    add(scores, count, first);
  }

  // Writes the indices in ascending order; returns how many, k at most.
  int64_t finish(int32_t* out) {
    if (count_ > k_) keep_best();
    std::copy_n(index_.data(), count_, out);
    return count_;
  }

 private:
  // Whole numbers that order as the scores do, all above INT32_MIN.
  static VecInt order_of(Vec score) {
    VecInt bits = reinterpret_cast<VecInt>(score + 0.0f);  // -0 + 0 is +0
    VecInt order = bits ^ ((bits >> 31) & INT32_MAX);
    return score == score ? order : VecInt{} + (INT32_MIN + 1);  // NOLINT(misc-redundant-expression): NaN
  }

  // Without a branch on the data: one vector in three has a score worth keeping, which nobody can predict.
  void append(VecInt order, VecInt index, uint32_t lanes) {
    compress(order_.data() + count_, order, lanes);
    count_ += compress(index_.data() + count_, index, lanes);
    if (count_ > capacity_ - kLanes) keep_best();
  }

  // How many of the buffer are at least `order`; what lies behind its end counts as INT32_MIN.
  int64_t at_least(int32_t order) const {
    VecInt total{};
    for (int64_t i = 0; i < count_; i += kLanes) total -= load_int(order_.data() + i) >= order;
    int64_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += total[lane];
    return sum;
  }

  // The nth best, or a number below it that parts the n best from all others: bit by bit from the highest. Counting costs one
  // comparison a vector and no branch on the data.
  int32_t nth_best(int64_t n) const {
    uint32_t best = 0;
    int64_t found = -1;
    for (int bit = 31; bit >= 0 && found != n; --bit) {
      found = at_least(int32_t((best | 1u << bit) ^ 0x80000000u));
      if (found >= n) best |= 1u << bit;
    }
    return int32_t(best ^ 0x80000000u);
  }

  // Keeps what is better than the k-th best, and of its equals the first.
  void keep_best() {
    std::fill_n(order_.data() + count_, kLanes, INT32_MIN);
    threshold_ = nth_best(k_);
    int64_t equals = k_ - at_least(threshold_ + 1), kept = 0;
    for (int64_t i = 0; i < count_; i += kLanes) {
      VecInt order = load_int(order_.data() + i), index = load_int(index_.data() + i);
      uint32_t better = greater(order, threshold_), equal = greater(order, threshold_ - 1) & ~better;
      for (; equal != 0 && equals > 0; equal &= equal - 1, --equals) better |= equal & -equal;
      compress(order_.data() + kept, order, better);
      kept += compress(index_.data() + kept, index, better);
    }
    count_ = kept;
  }

  int64_t k_ = 0, count_ = 0, capacity_ = 0;
  int32_t threshold_ = 0;
  std::vector<int32_t> order_, index_;
};

}  // namespace fulgur::FULGUR_ISA
