#include "fulgur/ops/bench.h"
#include "fulgur/ops/dense_mla/dense_mla.h"

namespace fulgur::ops {
namespace {

RegisterBench cases("dense_mla", [] {
  constexpr int64_t N = 1024, H = 8, E = 192, V = 128;
  auto q = leaf({N, H, E}), k = leaf({N, H, E}), v = leaf({N, H, V});
  auto visible = causal(N, N);
  double pairs = double(N) * (N + 1) / 2, flops = 2.0 * H * (E + V) * pairs, bytes = 4.0 * N * H * (2 * E + 2 * V);
  std::vector<BenchCase> out;
  out.push_back({"dense_mla", "N1024 H8 E192 V128 causal", flops, bytes,
                 [=] { dense_mla(q.detach(), k.detach(), v.detach(), visible, 0.07); },
                 [=] { reference::dense_mla(q.detach(), k.detach(), v.detach(), visible, 0.07); }});
  out.push_back({"dense_mla train", "N1024 H8 E192 V128 causal", 3.5 * flops, 3 * bytes,
                 train({q, k, v}, [=] { return std::get<0>(dense_mla(q, k, v, visible, 0.07)); }),
                 train({q, k, v}, [=] { return std::get<0>(reference::dense_mla(q, k, v, visible, 0.07)); })});
  return out;
});

// One head group of 8; libtorch's best is its own flash attention, which wants values as wide as keys.
RegisterBench official("dense_mla", [] {
  using namespace v32;
  constexpr int64_t N = 4096, G = 8;
  auto q = leaf({N, G, E}), k = leaf({N, G, E}), v = leaf({N, G, V});
  auto visible = causal(N, N);
  double pairs = double(N) * (N + 1) / 2 * G, bytes = 4.0 * N * G * (2 * E + 2 * V);
  auto heads = [](const at::Tensor& x) { return x.transpose(0, 1).unsqueeze(0); };
  auto flash = [=](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
    auto wide = at::constant_pad_nd(v, {0, E - V});
    return at::scaled_dot_product_attention(heads(q), heads(k), heads(wide), {}, 0.0, /*is_causal=*/true, 0.07);
  };
  std::vector<BenchCase> out;
  out.push_back({"dense_mla V3.2", "N4096 H8 causal", 2 * pairs * (E + V), bytes,
                 [=] { dense_mla(q.detach(), k.detach(), v.detach(), visible, 0.07); },
                 [=] { flash(q.detach(), k.detach(), v.detach()); }});
  out.push_back({"dense_mla V3.2 backward", "N4096 H8 causal", 2 * pairs * (3 * E + 2 * V), 2 * bytes,
                 backward_alone({q, k, v}, [=] { return std::get<0>(dense_mla(q, k, v, visible, 0.07)); }),
                 backward_alone({q, k, v}, [=] { return flash(q, k, v); })});
  return out;
});

}  // namespace
}  // namespace fulgur::ops
