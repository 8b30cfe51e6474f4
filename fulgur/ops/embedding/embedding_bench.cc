#include "fulgur/ops/bench.h"
#include "fulgur/ops/embedding/embedding.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("embedding", [] {
  constexpr int64_t N = 4096, D = 1024, V = 8192;
  auto w = leaf({V, D});
  auto ids = at::randint(V, {N}).to(at::kInt);
  return std::vector<BenchCase>{
      {"embedding", "N4096 D1024 V8192", 0, 8.0 * N * D, [=] { embedding(w.detach(), ids, at::kFloat); },
       [=] { reference::embedding(w.detach(), ids, at::kFloat); }},
      {"embedding train", "N4096 D1024 V8192", 1.0 * N * D, 4.0 * (4 * N * D + V * D),
       train({w}, [=] { return embedding(w, ids, at::kFloat); }),
       train({w}, [=] { return reference::embedding(w, ids, at::kFloat); })}};
});

}  // namespace
}  // namespace fulgur::ops
