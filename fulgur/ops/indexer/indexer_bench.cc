#include "fulgur/ops/bench.h"
#include "fulgur/ops/indexer/indexer.h"

namespace fulgur::ops {
namespace {

RegisterBench cases([] {
  constexpr int64_t N = 256, S = 4096, J = 16, D = 128, K = 256;
  auto q = leaf({N, J, D}), k = leaf({S, D}), w = leaf({N, J});
  auto qd = q.detach(), kd = k.detach(), wd = w.detach();
  auto visible = at::stack({at::zeros({N}, at::kInt), at::arange(S - N + 1, S + 1, at::kInt)}, 1).contiguous();
  double pairs = double(N) * (S - N / 2.0), flops = 2.0 * J * D * pairs, bytes = 4.0 * (N * J * D + S * D);
  std::vector<BenchCase> out;
  out.push_back(
      {"indexer_top_k", "N256 S4096 J16 D128 K256", flops, bytes, [=] { indexer_top_k(qd, kd, wd, visible, K); },
       [=] { reference::top_k(reference::indexer_scores(qd, kd, wd, visible), visible.select(1, 1).contiguous(), K); }});
  constexpr int64_t L = 131072, R = 64;
  auto scores = at::randn({R, L}).abs(), lengths = at::full({R}, L, at::kInt);
  out.push_back({"top_k", "R64 L131072 k2048", 0, 4.0 * R * L, [=] { top_k(scores, lengths, 2048); },
                 [=] { reference::top_k(scores, lengths, 2048); }});
  constexpr int64_t T = 512, H = 8, E = 192;
  auto tq = leaf({T, J, D}), tk = leaf({T, D}), tw = leaf({T, J});
  auto aq = at::randn({T, H, E}), ak = at::randn({T, H, E}), lse = at::full({T, H}, 6.0f);
  auto seen = causal(T, T);
  double dense_pairs = double(T) * (T + 1) / 2;
  out.push_back({"indexer_kl_dense train", "N512 J16 D128 H8 E192", dense_pairs * (6.0 * J * D + 2.0 * H * E),
                 4.0 * T * (2 * J * D + H * E),
                 train({tq, tk, tw}, [=] { return indexer_kl_dense(tq, tk, tw, aq, ak, lse, seen, 0.07); }),
                 train({tq, tk, tw}, [=] { return reference::indexer_kl_dense(tq, tk, tw, aq, ak, lse, seen, 0.07); })});
  auto selected = indexer_top_k(qd, kd, wd, visible, K), target = at::full({N, K}, 1.0f / K);
  out.push_back({"indexer_kl_sparse train", "N256 S4096 J16 D128 K256", 6.0 * N * K * J * D, 4.0 * (2 * N * J * D + 2 * S * D),
                 train({q, k, w}, [=] { return indexer_kl_sparse(q, k, w, selected, target); }),
                 train({q, k, w}, [=] { return reference::indexer_kl_sparse(q, k, w, selected, target); })});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
