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

// Few rows by weights that lie in no cache: 2 GB of them, in turn, as training keeps them or as inference does.
std::vector<BenchCase> few_rows(at::ScalarType type, bool packed) {
  std::vector<BenchCase> out;
  bool f32 = type == at::kFloat;
  struct Weights {
    std::vector<at::Tensor> plain, ours;
    size_t turn = 0;
  };
  auto weights = std::make_shared<Weights>();
  auto next = [=](std::vector<at::Tensor> Weights::*which) -> const at::Tensor& {
    while (weights->plain.size() < (f32 ? 128 : 256)) {
      weights->plain.push_back(at::rand({4096, 1024}).to(type));
      weights->ours.push_back(packed ? pack(weights->plain.back()) : weights->plain.back());
    }
    return (*weights.*which)[weights->turn++ % weights->plain.size()];
  };
  for (int64_t N : {1, 8, 64}) {
    auto rows = at::randn({N, 1024}).to(type);
    out.push_back({"linear of 2 GB", cat("N", N, " I1024 O4096 ", f32 ? "f32" : "bf16", packed ? " packed" : ""),
                   2.0 * double(N) * 1024 * 4096, double(rows.element_size()) * double(N * 5120 + 1024 * 4096),
                   [=] { ops::linear(rows, next(&Weights::ours)); }, [=] { at::matmul(rows, next(&Weights::plain).t()); }});
  }
  return out;
}

RegisterBench few_f32("linear", [] { return few_rows(at::kFloat, false); });
RegisterBench few_f32_packed("linear", [] { return few_rows(at::kFloat, true); });
RegisterBench few_bf16("linear", [] { return few_rows(at::kBFloat16, false); });
RegisterBench few_bf16_packed("linear", [] { return few_rows(at::kBFloat16, true); });

RegisterBench heads("head_linear", [] {
  auto q = at::randn({512, 16, 128}), uk = at::randn({16, 128, 512});
  return std::vector<BenchCase>{{"head_linear", "N512 H16 I128 O512", 2.0 * 512 * 16 * 128 * 512,
                                 4.0 * (512 * 16 * 640 + 16 * 128 * 512), [=] { head_linear(q, uk); },
                                 [=] { at::bmm(q.transpose(0, 1), uk); }}};
});

}  // namespace
}  // namespace fulgur::ops
