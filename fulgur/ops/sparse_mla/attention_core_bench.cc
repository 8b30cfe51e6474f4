// What sparse attention is for: the whole attention core of one layer at the published sizes beside dense attention.
#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/ops/bench.h"
#include "fulgur/ops/dense_mla/dense_mla.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/indexer_kl/indexer_kl.h"
#include "fulgur/ops/sparse_mla/sparse_mla.h"

namespace fulgur::ops {
namespace {

using namespace v32;
constexpr double kScale = 0.07;

// A training step's last 256 rows: indexer, top-k, sparse MLA, KL and all gradients beside dense MHA's forward and backward.
// Its keys and values lie expanded already, 8 of 128 heads at a time; one such group is timed.
std::vector<BenchCase> training(int64_t S) {
  constexpr int64_t N = 256, G = 8;
  auto iq = leaf({N, J, D}), ik = leaf({S, D}), iw = (at::rand({N, J}) * .1).requires_grad_();
  auto q = leaf({N, H, C}), kv = leaf({S, C}), visible = slab(N, S);
  auto own = [=] {
    auto selected = indexer_top_k(iq, ik, iw, visible, K);
    auto [out, lse, target] = sparse_mla(q, kv, selected, R, kScale);
    auto kl = indexer_kl_sparse(iq, ik, iw, selected, target);
    at::Tensor(out.sum() + kl.sum()).backward();
    for (const auto& x : {iq, ik, iw, q, kv}) x.mutable_grad() = at::Tensor();
  };
  auto dq = leaf({N, G, E}), dk = leaf({S, G, E}), dv = leaf({S, G, V});
  double pairs = double(N) * (double(S) - N / 2.0);
  double flops = 2 * pairs * J * D + 2.0 * N * K * (H * (C + R + 3 * C + 2 * R) + 3 * J * D);
  return {{"attention core", cat("train N256 S", S / 1024, "K"), flops, 0, own,
           train({dq, dk, dv}, [=] { return std::get<0>(dense_mla(dq, dk, dv, visible, kScale)); }), double(H) / G}};
}

RegisterBench short_text("attention core", [] { return training(32768); });
RegisterBench text("attention core", [] { return training(65536); });
RegisterBench long_text("attention core", [] { return training(131072); });

// What a token costs as its context grows: the forward pass of the last 256 rows, beside dense MHA's by groups of 8 heads.
std::vector<BenchCase> forward() {
  constexpr int64_t N = 256, kMost = 131072, G = 8;
  auto iq = at::randn({N, J, D}), iw = at::rand({N, J}), q = at::randn({N, H, C}) * .1, dq = at::randn({N, G, E}) * .1;
  auto ik = at::randn({kMost, D}), kv = at::randn({kMost, C}) * .1, dk = at::randn({kMost, G, E}) * .1;
  auto dv = at::randn({kMost, G, V}) * .1;
  std::vector<BenchCase> cases;
  for (int64_t S = 2048; S <= kMost; S *= 2) {
    auto first = [=](const at::Tensor& keys) { return keys.narrow(0, 0, S); };
    auto visible = slab(N, S);
    double flops = 0;
    for (int64_t seen = S - N + 1; seen <= S; ++seen)
      flops += 2.0 * double(seen * J * D) + 2.0 * double(std::min(K, seen) * H * (C + R));
    cases.push_back({"attention forward", cat("N256 S", S / 1024, "K"), flops, 0,
                     [=] { sparse_mla(q, first(kv), indexer_top_k(iq, first(ik), iw, visible, K), R, kScale); },
                     [=] { dense_mla(dq, first(dk), first(dv), visible, kScale); }, double(H) / G});
  }
  return cases;
}

RegisterBench by_context("attention forward", forward);

// One token after 128K: indexer, top-k and attention over 2,048 keys beside the absorbed form over all.
RegisterBench decode("attention core", [] {
  constexpr int64_t S = 131072;
  auto iq = at::randn({1, J, D}), ik = at::randn({S, D}), iw = at::rand({1, J}), q = at::randn({1, H, C}) * .1;
  auto kv = at::randn({S, C}) * .1, visible = slab(1, S), all = at::arange(S, at::kInt).unsqueeze(0);
  return std::vector<BenchCase>{{"attention core", "decode S128K", 2.0 * S * J * D + 2.0 * K * H * (C + R), 4.0 * S * D,
                                 [=] { sparse_mla(q, kv, indexer_top_k(iq, ik, iw, visible, K), R, kScale); },
                                 [=] { sparse_mla(q, kv, all, R, kScale); }}};
});

}  // namespace
}  // namespace fulgur::ops
