#include "fulgur/ops/bench.h"
#include "fulgur/ops/quantize/quantize.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("", [] {
  auto x = at::randn({2048, 2048}), h = at::randn({131072, 128});
  double n = double(x.numel());
  return std::vector<BenchCase>{
      {"to_e4m3", "2048x2048", n, 5 * n, [=] { to_e4m3(x); }, [=] { reference::to_e4m3(x); }},
      {"simulate_fp8", "2048x2048", 4 * n, 8 * n, [=] { simulate_fp8(x); }, [=] { reference::simulate_fp8(x); }},
      {"hadamard", "131072x128", 7.0 * h.numel(), 8.0 * h.numel(), [=] { hadamard(h); }, [=] { reference::hadamard(h); }}};
});

}  // namespace
}  // namespace fulgur::ops
