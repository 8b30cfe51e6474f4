#include "fulgur/ops/bench.h"
#include "fulgur/ops/experts/experts.h"

namespace fulgur::ops {
namespace {

RegisterBench cases([] {
  constexpr int64_t N = 1024, D = 512, I = 256, E = 32, k = 4;
  auto x = leaf({N, D}), gate = leaf({E, I, D}), up = leaf({E, I, D}), down = leaf({E, D, I}), shared = leaf({N, D});
  auto weights = at::full({N, k}, 0.25f);
  auto ids = std::get<0>(std::get<1>(at::rand({N, E}).topk(k, 1)).sort(1)).to(at::kInt).contiguous();
  double flops = 6.0 * N * k * D * I, bytes = 4.0 * (3 * E * D * I + 3 * N * D);
  std::vector<BenchCase> out;
  auto run = [=](const auto& f) {
    return f(x.detach(), ids, weights, gate.detach(), up.detach(), down.detach(), shared.detach());
  };
  out.push_back({"experts", "N1024 D512 I256 E32 k4", flops, bytes, [=] { run(experts); }, [=] { run(reference::experts); }});
  out.push_back(
      {"experts train", "N1024 D512 I256 E32 k4", 3 * flops, 3 * bytes,
       train({x, gate, up, down, shared}, [=] { return experts(x, ids, weights, gate, up, down, shared); }),
       train({x, gate, up, down, shared}, [=] { return reference::experts(x, ids, weights, gate, up, down, shared); })});
  auto g = at::randn({8192, 2048}), u = at::randn({8192, 2048});  // 200 MB: what fits in a cache outruns the memory's limit
  out.push_back(
      {"swiglu", "N8192 I2048", 5.0 * g.numel(), 12.0 * g.numel(), [=] { swiglu(g, u); }, [=] { reference::swiglu(g, u); }});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
