#include "fulgur/ops/linear/gathered.h"

#include <vector>

#include "fulgur/base/threads.h"

namespace fulgur {
namespace {

struct Range {
  int64_t first, last;
};

// The keys a row selected lie in [first, last).
Range keys_of(const KeyGradients& g, int64_t row) {
  const int32_t* keys = g.selected + row * g.K;
  int64_t count = std::partition_point(keys, keys + g.K, [](int32_t key) { return key >= 0; }) - keys;
  return count == 0 ? Range{INT32_MAX, 0} : Range{keys[0], keys[count - 1] + 1};
}

// Neighbouring rows in bundles of at least `least`, none of which shares a key with rows behind it: documents, mostly.
std::vector<Range> disjoint_bundles(const std::vector<Range>& keys, int64_t least) {
  int64_t rows = int64_t(keys.size());
  std::vector<int64_t> first_behind(rows + 1, INT32_MAX);
  for (int64_t row = rows - 1; row >= 0; --row) first_behind[row] = std::min(first_behind[row + 1], keys[row].first);
  std::vector<Range> bundles;
  for (int64_t row = 0, begin = 0, reach = 0; row < rows; ++row) {
    reach = std::max(reach, keys[row].last);
    if (row + 1 < rows && (row + 1 - begin < least || first_behind[row + 1] < reach)) continue;
    bundles.push_back({begin, row + 1});
    begin = row + 1;
  }
  return bundles;
}

}  // namespace

void add_to_keys(const KeyGradients& g, const std::function<void(int64_t row, int64_t slot)>& fill) {
  if (g.N == 0) return;
  auto add = FULGUR_CALL(add_to_key_range);
  int64_t slots = g.slots(), tasks = std::min<int64_t>(slots, 8 * threads());
  std::vector<Range> keys(g.N);
  for (int64_t row = 0; row < g.N; ++row) keys[row] = keys_of(g, row);
  auto bundles = disjoint_bundles(keys, (g.N + tasks - 1) / tasks);
  int64_t largest = 0;
  for (const auto& bundle : bundles) largest = std::max(largest, bundle.last - bundle.first);
  if (largest * threads() <= g.N + g.N / 4) {  // then nothing leaves the cache between a row's factors and its keys
    parallel_for(int64_t(bundles.size()), [&](int64_t i) {
      for (int64_t row = bundles[i].first; row < bundles[i].last; ++row) {
        fill(row, i);
        if (keys[row].first < keys[row].last) add(g, row, i, 1, keys[row].first, keys[row].last);
      }
    });
    return;
  }
  // Many terms are a matrix product, which wants a query's keys of a range to be several.
  int64_t ranges = g.terms <= 2 * kFewRows ? 4 * threads() : std::clamp<int64_t>(g.K / 64, 1, 16 * threads());
  for (int64_t row = 0; row < g.N; row += slots) {
    int64_t rows = std::min(slots, g.N - row);
    parallel_for(rows, [&](int64_t i) { fill(row + i, i); });
    Range seen{INT32_MAX, 0};
    for (int64_t i = row; i < row + rows; ++i) seen = {std::min(seen.first, keys[i].first), std::max(seen.last, keys[i].last)};
    int64_t width = (seen.last - seen.first + ranges - 1) / ranges;
    if (width <= 0) continue;
    parallel_for(ranges, [&](int64_t i) {
      int64_t first = seen.first + i * width;
      add(g, row, 0, rows, first, std::min(seen.last, first + width));
    });
  }
}

}  // namespace fulgur
