#include "fulgur/base/error.h"
#include "fulgur/ops/bench.h"
#include "fulgur/ops/experts/experts.h"

namespace fulgur::ops {
namespace {

std::vector<BenchCase> experts_cases(int64_t N, int64_t D, int64_t I, int64_t E, int64_t k) {
  auto x = leaf({N, D}), gate = leaf({E, I, D}), up = leaf({E, I, D}), down = leaf({E, D, I}), shared = leaf({N, D});
  auto weights = at::full({N, k}, 0.25f);
  auto ids = std::get<0>(std::get<1>(at::rand({N, E}).topk(k, 1)).sort(1)).to(at::kInt).contiguous();
  double flops = 6.0 * double(N * k * D * I), bytes = 4.0 * double(3 * E * D * I + 3 * N * D);
  auto label = cat("N", N, " D", D, " I", I, " E", E, " k", k);
  std::vector<BenchCase> out;
  auto run = [=](const auto& f) {
    return f(x.detach(), ids, weights, gate.detach(), up.detach(), down.detach(), shared.detach());
  };
  out.push_back({"experts", label, flops, bytes, [=] { run(experts); }, [=] { run(reference::experts); }});
  out.push_back(
      {"experts train", label, 3 * flops, 3 * bytes,
       train({x, gate, up, down, shared}, [=] { return experts(x, ids, weights, gate, up, down, shared); }),
       train({x, gate, up, down, shared}, [=] { return reference::experts(x, ids, weights, gate, up, down, shared); })});
  return out;
}

RegisterBench small("experts", [] { return experts_cases(1024, 512, 256, 32, 4); });
RegisterBench large("experts", [] { return experts_cases(512, 2048, 768, 64, 8); });
RegisterBench gates("swiglu", [] {
  auto g = at::randn({8192, 2048}), u = at::randn({8192, 2048});  // 200 MB: what fits in a cache outruns the memory's limit
  double n = double(g.numel());
  return std::vector<BenchCase>{
      {"swiglu", "N8192 I2048", 5 * n, 12 * n, [=] { swiglu(g, u); }, [=] { reference::swiglu(g, u); }}};
});

}  // namespace
}  // namespace fulgur::ops
