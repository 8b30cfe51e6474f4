#include "fulgur/ops/bench.h"
#include "fulgur/ops/rope/rope.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("rope", [] {
  auto x = at::randn({2048, 16, 192});
  auto turn = rotation(at::arange(2048, at::kInt), std::vector<float>(32, 0.5f));
  return std::vector<BenchCase>{{"rope", "N2048 H16 E192 P64", 3.0 * 2048 * 16 * 64, 8.0 * x.numel(),
                                 [=] { rope(x, turn, 128, Pairing::adjacent); },
                                 [=] { reference::rope(x, turn, 128, Pairing::adjacent); }}};
});

}  // namespace
}  // namespace fulgur::ops
