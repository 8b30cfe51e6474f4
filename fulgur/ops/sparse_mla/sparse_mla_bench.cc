#include "fulgur/ops/bench.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("sparse_mla", [] {
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

// libtorch's best: gather a row's keys, two products and a softmax, row by row.
at::Tensor gathered(const at::Tensor& q_NHC, const at::Tensor& kv_SC, const at::Tensor& selected_NK, int64_t R, double scale) {
  std::vector<at::Tensor> rows;
  for (int64_t n = 0; n < q_NHC.size(0); ++n) {
    auto keys_KC = kv_SC.index_select(0, selected_NK[n]);
    rows.push_back((at::matmul(q_NHC[n], keys_KC.t()) * scale).softmax(1).matmul(keys_KC.narrow(1, 0, R)));
  }
  return at::stack(rows);
}

RegisterBench official("sparse_mla", [] {
  using namespace v32;
  constexpr int64_t N = 256, S = 131072;
  auto q = leaf({N, H, C}), kv = leaf({S, C}), selected = spread_keys(N, S, K);
  double flops = 2.0 * N * H * K * (C + R), backward = 2.0 * N * H * K * (3 * C + 2 * R);
  double bytes = 4.0 * (N * H * (C + R) + N * K * C);
  std::vector<BenchCase> out;
  out.push_back({"sparse_mla V3.2", "N256 S128K H128 K2048", flops, bytes,
                 [=] { sparse_mla(q.detach(), kv.detach(), selected, R, 0.07); },
                 [=] { gathered(q.detach(), kv.detach(), selected, R, 0.07); }});
  out.push_back({"sparse_mla V3.2 backward", "N256 S128K H128 K2048", backward, 3 * bytes,
                 backward_alone({q, kv}, [=] { return std::get<0>(sparse_mla(q, kv, selected, R, 0.07)); }),
                 backward_alone({q, kv}, [=] { return gathered(q.narrow(0, 0, 8), kv, selected, R, 0.07); }), double(N) / 8});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
