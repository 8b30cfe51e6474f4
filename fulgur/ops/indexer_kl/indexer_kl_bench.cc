#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/ops/bench.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("indexer_kl", [] {
  std::vector<BenchCase> out;
  constexpr int64_t N = 256, S = 4096, J = 16, D = 128, K = 256;
  auto q = leaf({N, J, D}), k = leaf({S, D}), w = leaf({N, J});
  constexpr int64_t T = 512, H = 8, E = 192;
  auto tq = leaf({T, J, D}), tk = leaf({T, D}), tw = leaf({T, J});
  auto aq = at::randn({T, H, E}), ak = at::randn({T, H, E}), lse = at::full({T, H}, 6.0f);
  auto seen = causal(T, T);
  double dense_pairs = double(T) * (T + 1) / 2;
  out.push_back({"indexer_kl_dense train", "N512 J16 D128 H8 E192", dense_pairs * (6.0 * J * D + 2.0 * H * E),
                 4.0 * T * (2 * J * D + H * E),
                 train({tq, tk, tw}, [=] { return indexer_kl_dense(tq, tk, tw, aq, ak, lse, seen, 0.07).sum(); }),
                 train({tq, tk, tw}, [=] { return reference::indexer_kl_dense(tq, tk, tw, aq, ak, lse, seen, 0.07).sum(); })});
  auto selected = indexer_top_k(q, k, w, slab(N, S), K), target = at::full({N, K}, 1.0f / K);
  out.push_back({"indexer_kl_sparse train", "N256 S4096 J16 D128 K256", 6.0 * N * K * J * D, 4.0 * (2 * N * J * D + 2 * S * D),
                 train({q, k, w}, [=] { return indexer_kl_sparse(q, k, w, selected, target).sum(); }),
                 train({q, k, w}, [=] { return reference::indexer_kl_sparse(q, k, w, selected, target).sum(); })});
  return out;
});

// The warm-up's loss, forward and backward, of the last 256 rows. Least work: the attention's and the indexer's scores once,
// its gradients to q and to k.
RegisterBench warmup("indexer_kl_dense", [] {
  using namespace v32;
  std::vector<BenchCase> out;
  constexpr int64_t N = 256;
  for (int64_t S : {4096, 32768}) {
    auto q = leaf({N, J, D}), k = leaf({S, D}), w = leaf({N, J}), aq = at::randn({N, H, E}) * .3, ak = at::randn({S, H, E}) * .3;
    auto lse = at::full({N, H}, std::log(float(S)) + 1), visible = slab(N, S);
    double flops = 2.0 * double(N) * (double(S) - N / 2.0) * (H * E + 3 * J * D);
    out.push_back(
        {"indexer_kl_dense V3.2 train", cat("N256 S", S / 1024, "K J64 H128"), flops, 4.0 * double(S) * (H * E + D),
         train({q, k, w}, [=] { return indexer_kl_dense(q, k, w, aq, ak, lse, visible, 0.07).sum(); }),
         train({q, k, w},
               [=] {
                 auto part = [](const at::Tensor& x) { return x.narrow(0, 0, 8); };
                 return reference::indexer_kl_dense(part(q), k, part(w), part(aq), ak, part(lse), part(visible), 0.07).sum();
               }),
         double(N) / 8});
  }
  return out;
});

}  // namespace
}  // namespace fulgur::ops
