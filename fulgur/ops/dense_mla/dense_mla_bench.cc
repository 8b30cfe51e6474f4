#include "fulgur/ops/bench.h"
#include "fulgur/ops/dense_mla/dense_mla.h"

namespace fulgur::ops {
namespace {

RegisterBench cases([] {
  constexpr int64_t N = 1024, H = 8, E = 192, V = 128;
  auto q = leaf({N, H, E}), k = leaf({N, H, E}), v = leaf({N, H, V});
  auto visible = causal(N, N);
  double pairs = double(N) * (N + 1) / 2, flops = 2.0 * H * (E + V) * pairs, bytes = 4.0 * N * H * (2 * E + 2 * V);
  std::vector<BenchCase> out;
  out.push_back({"dense_mla", "N1024 H8 E192 V128 causal", flops, bytes,
                 [=] { dense_mla(q.detach(), k.detach(), v.detach(), visible, 0.07); },
                 [=] { reference::dense_mla(q.detach(), k.detach(), v.detach(), visible, 0.07); }});
  out.push_back({"dense_mla train", "N1024 H8 E192 V128 causal", 3.5 * flops, 3 * bytes,
                 train({q, k, v}, [=] { return std::get<0>(dense_mla(q, k, v, visible, 0.07)); }),
                 train({q, k, v}, [=] { return std::get<0>(reference::dense_mla(q, k, v, visible, 0.07)); })});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
