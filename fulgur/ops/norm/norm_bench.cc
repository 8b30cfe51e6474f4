#include "fulgur/ops/bench.h"
#include "fulgur/ops/norm/norm.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("", [] {
  constexpr int64_t N = 2048, D = 2048;
  auto x = leaf({N, D}), r = leaf({N, D}), w = leaf({D}), b = leaf({D});
  auto d = x.detach(), s = r.detach(), v = w.detach(), c = b.detach();
  double one = 4.0 * N * D;
  std::vector<BenchCase> out;
  out.push_back(
      {"rms_norm", "N2048 D2048", 4.0 * N * D, 2 * one, [=] { rms_norm(d, v, 1e-6); }, [=] { at::rms_norm(d, {D}, v, 1e-6); }});
  out.push_back({"rms_norm train", "N2048 D2048", 14.0 * N * D, 6 * one, train({x, w}, [=] { return rms_norm(x, w, 1e-6); }),
                 train({x, w}, [=] { return at::rms_norm(x, {D}, w, 1e-6); })});
  out.push_back({"add_rms_norm", "N2048 D2048", 5.0 * N * D, 4 * one, [=] { add_rms_norm(d, s, v, 1e-6); },
                 [=] { at::rms_norm(d + s, {D}, v, 1e-6); }});
  out.push_back({"layer_norm", "N2048 D2048", 6.0 * N * D, 2 * one, [=] { layer_norm(d, v, c, 1e-6); },
                 [=] { at::layer_norm(d, {D}, v, c, 1e-6); }});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
