// What each <op>_bench.cc registers for `fulgur bench ops`: a piece of work, its reference, its FLOP and bytes.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace fulgur::ops {

struct BenchCase {
  std::string name, label;      // operation; shapes
  double flops = 0, bytes = 0;  // least work and traffic it needs
  std::function<void()> run, reference;
  double reference_parts = 1;  // the reference does one of so many equal parts, which would not fit or take minutes
};

// Cases of one operation; `name` is what all their names begin with, so that a filter spares making the others.
struct BenchGroup {
  std::string name;
  std::function<std::vector<BenchCase>()> make;
};

inline std::vector<BenchGroup>& bench_registry() {
  static std::vector<BenchGroup> all;
  return all;
}

struct RegisterBench {
  RegisterBench(std::string name, std::function<std::vector<BenchCase>()> make) {
    bench_registry().push_back({std::move(name), std::move(make)});
  }
};

// Forward and backward of y = f(); gradients of `leaves` are dropped again.
inline std::function<void()> train(std::vector<at::Tensor> leaves, std::function<at::Tensor()> f) {
  return [leaves = std::move(leaves), f = std::move(f)] {
    auto y = f();
    y.backward(at::ones_like(y));
    for (const auto& leaf : leaves) leaf.mutable_grad() = at::Tensor();
  };
}

// The backward alone: y = f() is made once, by the first call, which is not timed.
inline std::function<void()> backward_alone(std::vector<at::Tensor> leaves, std::function<at::Tensor()> f) {
  return [leaves = std::move(leaves), f = std::move(f), y = std::make_shared<at::Tensor>()] {
    if (!y->defined()) *y = f();
    y->backward(at::ones_like(*y), /*retain_graph=*/true, /*create_graph=*/false, leaves);
    for (const auto& leaf : leaves) leaf.mutable_grad() = at::Tensor();
  };
}

inline at::Tensor leaf(at::IntArrayRef sizes) { return (at::randn(sizes) * 0.1).requires_grad_(); }

// Sizes of DeepSeek-V3.2: attention heads, latent and key size, value size of a head, its qk size; indexer heads, their size;
// top-k.
namespace v32 {
constexpr int64_t H = 128, R = 512, C = 576, V = 128, E = 192, J = 64, D = 128, K = 2048;
}

// The last N rows of a text of S tokens: key ranges [N, 2].
inline at::Tensor slab(int64_t N, int64_t S) {
  return at::stack({at::zeros({N}, at::kInt), at::arange(S - N + 1, S + 1, at::kInt)}, 1).contiguous();
}

// K ascending keys of each of N rows among S, every stretch of S / K keys giving one.
inline at::Tensor spread_keys(int64_t N, int64_t S, int64_t K) {
  return (at::arange(K) * (S / K) + at::randint(S / K, {N, K})).to(at::kInt).contiguous();
}

// Documents of `length` rows: key ranges [N, 2], causal.
inline at::Tensor causal(int64_t N, int64_t length) {
  auto row = at::arange(N, at::kInt);
  return at::stack({row - row.remainder(length), row + 1}, 1).contiguous();
}

}  // namespace fulgur::ops
