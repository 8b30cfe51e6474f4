#include "fulgur/ops/bench.h"
#include "fulgur/ops/quantize/quantize.h"

namespace fulgur::ops {
namespace {

RegisterBench cases([] {
  auto x = at::randn({2048, 2048}), h = at::randn({4096, 128});
  double n = double(x.numel());
  return std::vector<BenchCase>{
      {"to_e4m3", "2048x2048", n, 5 * n, [=] { to_e4m3(x); }, [=] { x.clamp(-448, 448).to(at::kFloat8_e4m3fn); }},
      {"quantize_rows", "2048x2048", 3 * n, 5 * n, [=] { quantize_rows(x, ScaleRule::pow2); },
       [=] {
         auto groups = x.view({2048, 16, 128});
         auto scale = groups.abs().amax(2, true).clamp_min(1e-4) / 448;
         (groups / scale).to(at::kFloat8_e4m3fn);
       }},
      {"hadamard", "4096x128", 7.0 * h.numel(), 8.0 * h.numel(), [=] { hadamard(h); }, nullptr}};
});

}  // namespace
}  // namespace fulgur::ops
