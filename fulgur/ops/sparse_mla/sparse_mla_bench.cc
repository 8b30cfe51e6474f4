#include "fulgur/ops/bench.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"

namespace fulgur::ops {
namespace {

RegisterBench cases([] {
  constexpr int64_t N = 256, S = 4096, H = 16, R = 512, C = 576, K = 256;
  auto q = leaf({N, H, C}), kv = leaf({S, C});
  auto selected = std::get<0>(std::get<1>(at::rand({N, S}).topk(K, 1)).sort(1)).to(at::kInt).contiguous();
  double flops = 2.0 * N * H * K * (C + R), bytes = 4.0 * (N * H * (C + R) + S * C);
  std::vector<BenchCase> out;
  out.push_back({"sparse_mla", "N256 S4096 H16 R512 P64 K256", flops, bytes,
                 [=] { sparse_mla(q.detach(), kv.detach(), selected, R, 0.07); },
                 [=] { reference::sparse_mla(q.detach(), kv.detach(), selected, R, 0.07); }});
  out.push_back({"sparse_mla train", "N256 S4096 H16 R512 P64 K256", 3.5 * flops, 3 * bytes,
                 train({q, kv}, [=] { return std::get<0>(sparse_mla(q, kv, selected, R, 0.07)); }),
                 train({q, kv}, [=] { return std::get<0>(reference::sparse_mla(q, kv, selected, R, 0.07)); })});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
