// 95 % intervals of what was measured on samples.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace fulgur {

constexpr double kTwoSided95 = 1.959964;

// Of the share of `right` among `of` (Wilson).
struct ShareInterval {
  double low = 0, high = 1;
};
inline ShareInterval share_interval(double right, double of) {
  double z = kTwoSided95, p = right / of, centre = (p + z * z / (2 * of)) / (1 + z * z / of);
  double half = z / (1 + z * z / of) * std::sqrt(p * (1 - p) / of + z * z / (4 * of * of));
  return {std::max(0.0, centre - half), std::min(1.0, centre + half)};
}

// A mean, and half of its interval.
struct Spread {
  double mean = 0, half = 0;
};
inline Spread spread(const std::vector<double>& values) {
  double n = double(values.size()), mean = 0, squares = 0;
  for (double value : values) mean += value / n;
  for (double value : values) squares += (value - mean) * (value - mean);
  return {mean, n > 1 ? kTwoSided95 * std::sqrt(squares / (n - 1) / n) : 0};
}

}  // namespace fulgur
