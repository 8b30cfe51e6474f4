#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/ops/bench.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/pages.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("", [] {
  constexpr int64_t N = 256, S = 4096, J = 16, D = 128, K = 256;
  auto q = at::randn({N, J, D}) * .1, k = at::randn({S, D}) * .1, w = at::randn({N, J}) * .1;
  auto visible = slab(N, S);
  double pairs = double(N) * (S - N / 2.0), flops = 2.0 * J * D * pairs, bytes = 4.0 * (N * J * D + S * D);
  std::vector<BenchCase> out;
  out.push_back({"indexer_top_k", "N256 S4096 J16 D128 K256", flops, bytes, [=] { indexer_top_k(q, k, w, visible, K); },
                 [=] { reference::top_k(reference::indexer_scores(q, k, w, visible), visible.select(1, 1).contiguous(), K); }});
  constexpr int64_t L = 131072, R = 64;
  auto scores = at::randn({R, L}).abs(), lengths = at::full({R}, L, at::kInt);
  out.push_back({"top_k", "R64 L131072 k2048", 0, 4.0 * R * L, [=] { top_k(scores, lengths, 2048); },
                 [=] { reference::top_k(scores, lengths, 2048); }});
  return out;
});

// libtorch's best for one row at a time: a product, ReLU, heads summed by weight, its own top-k.
void select_by_rows(const at::Tensor& q_NJD, const at::Tensor& k_SD, const at::Tensor& w_NJ, int64_t k) {
  for (int64_t n = 0; n < q_NJD.size(0); ++n) at::matmul(w_NJ[n], at::matmul(q_NJD[n], k_SD.t()).relu_()).topk(k);
}

RegisterBench official("indexer", [] {
  using namespace v32;
  constexpr int64_t N = 256, S = 131072;
  auto q = at::randn({N, J, D}) * .1, k = at::randn({S, D}), w = at::rand({N, J}) * .1;
  auto visible = slab(N, S);
  auto part = [=](const at::Tensor& x) { return x.narrow(0, 0, 8); };
  std::vector<BenchCase> out;
  out.push_back({"indexer_top_k V3.2", "N256 S128K J64 K2048", 2.0 * N * S * J * D, 4.0 * (N * J * D + S * D),
                 [=] { indexer_top_k(q, k, w, visible, K); }, [=] { select_by_rows(part(q), k, part(w), K); }, double(N) / 8});
  auto cache = empty_index_keys(S / kPageKeys, D, KeyFormat::int8, at::kFloat), pages = at::arange(S / kPageKeys, at::kInt);
  store_index_keys(cache, at::arange(S, at::kLong), k);
  out.push_back({"indexer_top_k V3.2", "N256 S128K J64 K2048 int8 cache", 2.0 * N * S * J * D, 4.0 * N * J * D + 132.0 * S,
                 [=] { indexer_top_k(q, cache, w, visible, K, pages); }, [=] { indexer_top_k(q, k, w, visible, K); }});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
