#include "fulgur/base/error.h"
#include "fulgur/ops/bench.h"
#include "fulgur/ops/linear/linear.h"

namespace fulgur::ops {
namespace {

BenchCase linear_case(int64_t N, int64_t I, int64_t O, at::ScalarType type) {
  auto x = at::randn({N, I}).to(type), w = at::randn({O, I}).to(type);
  double bytes = double(x.element_size()) * double(N * (I + O) + I * O);
  return {"linear",
          cat("N", N, " I", I, " O", O, type == at::kFloat ? " f32" : " bf16"),
          2.0 * double(N * I * O),
          bytes,
          [=] { ops::linear(x, w); },
          [=] { at::matmul(x, w.t()); }};
}

RegisterBench products("linear", [] {
  std::vector<BenchCase> out;
  for (auto type : {at::kFloat, at::kBFloat16}) {
    for (int64_t n : {512, 1024, 2048, 4096}) out.push_back(linear_case(n, n, n, type));
    out.push_back(linear_case(512, 1024, 1024, type));
  }
  out.push_back(linear_case(4096, 128, 64, at::kFloat));
  auto x = leaf({512, 1024}), w = leaf({1024, 1024});
  out.push_back({"linear train", "N512 I1024 O1024 f32", 6.0 * 512 * 1024 * 1024, 4.0 * 6 * 1024 * 1024,
                 train({x, w}, [=] { return ops::linear(x, w); }), train({x, w}, [=] { return at::matmul(x, w.t()); })});
  return out;
});

// Few rows by weights that lie in no cache: 2 GB of them, in turn.
RegisterBench few_rows("linear", [] {
  std::vector<BenchCase> out;
  for (auto type : {at::kFloat, at::kBFloat16}) {
    bool f32 = type == at::kFloat;
    auto weights = std::make_shared<std::vector<at::Tensor>>();
    auto next = [=, turn = std::make_shared<size_t>(0)]() -> const at::Tensor& {
      while (weights->size() < (f32 ? 128 : 256)) weights->push_back(at::rand({4096, 1024}).to(type));
      return (*weights)[(*turn)++ % weights->size()];
    };
    for (int64_t N : {1, 8, 64}) {
      auto rows = at::randn({N, 1024}).to(type);
      out.push_back({"linear of 2 GB", cat("N", N, " I1024 O4096", f32 ? " f32" : " bf16"), 2.0 * double(N) * 1024 * 4096,
                     double(rows.element_size()) * double(N * 5120 + 1024 * 4096), [=] { ops::linear(rows, next()); },
                     [=] { at::matmul(rows, next().t()); }});
    }
  }
  return out;
});

RegisterBench heads("head_linear", [] {
  auto q = at::randn({512, 16, 128}), uk = at::randn({16, 128, 512});
  return std::vector<BenchCase>{{"head_linear", "N512 H16 I128 O512", 2.0 * 512 * 16 * 128 * 512,
                                 4.0 * (512 * 16 * 640 + 16 * 128 * 512), [=] { head_linear(q, uk); },
                                 [=] { at::bmm(q.transpose(0, 1), uk); }}};
});

}  // namespace
}  // namespace fulgur::ops
