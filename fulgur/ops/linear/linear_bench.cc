#include "fulgur/base/error.h"
#include "fulgur/ops/bench.h"
#include "fulgur/ops/linear/linear.h"

namespace fulgur::ops {
namespace {

RegisterBench cases([] {
  std::vector<BenchCase> out;
  auto add = [&](int64_t N, int64_t I, int64_t O, at::ScalarType type) {
    auto x = at::randn({N, I}).to(type), w = at::randn({O, I});
    double bytes = double(N * (I + O) * x.element_size() + 4 * I * O);
    out.push_back({"linear", cat("N", N, " I", I, " O", O, type == at::kFloat ? " f32" : " bf16"), 2.0 * N * I * O, bytes,
                   [=] { ops::linear(x, w); }, [=] { at::matmul(x, w.to(x.scalar_type()).t()); }});
  };
  add(512, 1024, 1024, at::kFloat), add(512, 1024, 1024, at::kBFloat16), add(1, 1024, 4096, at::kFloat);
  add(4096, 128, 64, at::kFloat);
  // Few rows by weights that lie in no cache: 2 GB of them, in turn.
  auto weights = std::make_shared<std::vector<at::Tensor>>();
  auto next = [weights, turn = std::make_shared<size_t>(0)]() -> const at::Tensor& {
    while (weights->size() < 128) weights->push_back(at::rand({4096, 1024}));
    return (*weights)[(*turn)++ % weights->size()];
  };
  for (int64_t N : {1, 8, 64}) {
    auto rows = at::randn({N, 1024});
    out.push_back({"linear of 2 GB", cat("N", N, " I1024 O4096 f32"), 2.0 * N * 1024 * 4096, 4.0 * (N * 5120 + 1024 * 4096),
                   [=] { ops::linear(rows, next()); }, [=] { at::matmul(rows, next().t()); }});
  }
  auto x = leaf({512, 1024}), w = leaf({1024, 1024});
  out.push_back({"linear train", "N512 I1024 O1024 f32", 6.0 * 512 * 1024 * 1024, 4.0 * 6 * 1024 * 1024,
                 train({x, w}, [=] { return ops::linear(x, w); }), train({x, w}, [=] { return at::matmul(x, w.t()); })});
  auto q = at::randn({512, 16, 128}), uk = at::randn({16, 128, 512});
  out.push_back({"head_linear", "N512 H16 I128 O512", 2.0 * 512 * 16 * 128 * 512, 4.0 * (512 * 16 * 640 + 16 * 128 * 512),
                 [=] { head_linear(q, uk); }, [=] { at::bmm(q.transpose(0, 1), uk); }});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
