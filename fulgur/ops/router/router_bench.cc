#include "fulgur/ops/bench.h"
#include "fulgur/ops/router/router.h"

namespace fulgur::ops {
namespace {

// The official router: 256 experts in 8 groups, 4 groups and 8 experts kept.
RegisterBench cases("", [] {
  constexpr int64_t N = 2048, E = 256;
  auto logits = leaf({N, E}), values = logits.detach(), bias = at::zeros({E});
  RouterShape shape{8, 4, 8};
  auto ids = route(values, bias, shape), starts = at::tensor({0, 1024, 2048}, at::kInt);
  std::vector<BenchCase> out;
  out.push_back({"route", "N2048 E256 k8", 4.0 * N * E, 4.0 * N * E, [=] { route(values, bias, shape); },
                 [=] { reference::route(values, bias, shape); }});
  out.push_back({"route_weights", "N2048 E256 k8", 4.0 * N * 8, 4.0 * N * 8 * 3, [=] { route_weights(values, ids, true, 2.5); },
                 [=] { reference::route_weights(values, ids, true, 2.5); }});
  out.push_back({"balance_loss train", "N2048 E256", 12.0 * N * E, 12.0 * N * E,
                 train({logits}, [=] { return balance_loss(logits, ids, starts); }),
                 train({logits}, [=] { return reference::balance_loss(logits, ids, starts); })});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
