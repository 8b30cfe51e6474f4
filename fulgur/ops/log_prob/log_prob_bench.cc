#include "fulgur/ops/bench.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("log_prob", [] {
  constexpr int64_t N = 512, D = 512, V = 16384;
  auto x = leaf({N, D}), w = leaf({V, D});
  auto targets = at::randint(V, {N}).to(at::kInt);
  double flops = 2.0 * N * D * V, bytes = 4.0 * (V * D + N * D);
  std::vector<BenchCase> out;
  out.push_back({"log_prob", "N512 D512 V16384", flops, bytes, [=] { log_prob(x.detach(), w.detach(), targets); },
                 [=] { reference::log_prob(x.detach(), w.detach(), targets); }});
  out.push_back({"log_prob train", "N512 D512 V16384", 3 * flops, 3 * bytes,
                 train({x, w}, [=] { return log_prob(x, w, targets).sum(); }),
                 train({x, w}, [=] { return reference::log_prob(x, w, targets).sum(); })});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
