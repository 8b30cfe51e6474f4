#include "fulgur/ops/adamw/adamw.h"
#include "fulgur/ops/bench.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("", [] {
  constexpr int64_t n = int64_t(1) << 24;
  auto p = at::randn({n}), g = at::randn({n}), m = at::zeros({n}), v = at::zeros({n});
  AdamwStep step{1e-4, 0.9, 0.95, 1e-8, 0.1, 10, 1};
  return std::vector<BenchCase>{
      {"adamw", "16.8M", 14.0 * n, 28.0 * n, [=]() mutable { adamw(p, g, m, v, step); },
       [=]() mutable { reference::adamw(p, g, m, v, step); }},
      {"sum_of_squares", "16.8M", 2.0 * n, 4.0 * n, [=] { sum_of_squares(g); }, [=] { g.square().sum(); }}};
});

}  // namespace
}  // namespace fulgur::ops
