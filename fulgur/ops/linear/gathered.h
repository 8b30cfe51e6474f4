// Gradients of keys that queries selected: to[key] += sum_t coefficient[t][key] * line[t]. What a query adds to its keys is K *
// length floats; kept instead are the factors, and each range of keys then makes and adds its own. A key's sum runs over queries
// in ascending order, whatever the number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

#include "fulgur/ops/isa.h"

namespace fulgur {

// Up to so many heads, products with gathered keys have kernels of their own (gathered_kernel.h).
constexpr int64_t kFewRows = 8, kSomeRows = 32;

// A row of coefficients or dots of K keys, in whole vectors.
constexpr int64_t padded_keys(int64_t K) { return (K + 15) / 16 * 16; }

struct KeyGradients {
  const int32_t* selected;  // [N, K] ascending, -1 behind the last
  int64_t N, K;
  int64_t terms, length;
  int64_t split;  // of the first half of the terms' lines only so much counts; 0: all of every line
  float* to;      // [S, length]
  float* room;    // slots() * slot_size(): factors of so many queries at a time

  int64_t stride() const { return padded_keys(K); }
  int64_t slot_size() const { return terms * (stride() + length); }
  int64_t slots() const {
    return std::min(N, std::clamp<int64_t>((int64_t(1) << 21) / std::max<int64_t>(1, slot_size()), 4, 512));
  }
  float* coefficients(int64_t slot) const { return room + slot * slot_size(); }  // [terms, stride()]
  float* lines(int64_t slot) const { return coefficients(slot) + terms * stride(); }
};

// fill(row, slot) writes the factors of a query, each once, in parallel; its keys' gradients grow behind it.
void add_to_keys(const KeyGradients& gradients, const std::function<void(int64_t row, int64_t slot)>& fill);

// What queries [row, row + slots) add to keys [first, last); the first's factors are in `slot`, the next's behind.
FULGUR_KERNEL(void, add_to_key_range,
              (const KeyGradients&, int64_t row, int64_t slot, int64_t slots, int64_t first, int64_t last))

}  // namespace fulgur
