#include "fulgur/ops/indexer/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <vector>

namespace fulgur::ops {
namespace {

// An unsigned number that orders as the scores do.
uint32_t order(float score) {
  if (std::isnan(score)) return 0;
  if (score == 0) score = 0;  // -0
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace

void select_top_k(const float* scores, int64_t count, int64_t k, int32_t offset, int32_t* out) {
  int64_t kept = std::min(k, count);
  std::fill(out + kept, out + k, -1);
  if (count <= k) {
    for (int64_t i = 0; i < count; ++i) out[i] = offset + int32_t(i);
    return;
  }
  static thread_local std::vector<uint32_t> keys, work;
  keys.resize(count);
  for (int64_t i = 0; i < count; ++i) keys[i] = order(scores[i]);
  work = keys;
  std::nth_element(work.begin(), work.begin() + (k - 1), work.end(), std::greater<>());
  uint32_t threshold = work[k - 1];
  int64_t above = std::count_if(work.begin(), work.begin() + k, [&](uint32_t key) { return key > threshold; });
  int64_t ties = k - above;
  for (int64_t i = 0; i < count; ++i)
    if (keys[i] > threshold || (keys[i] == threshold && ties-- > 0)) *out++ = offset + int32_t(i);
}

}  // namespace fulgur::ops
