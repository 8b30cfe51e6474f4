// What each <op>_bench.cc registers for `fulgur bench ops`: a piece of work, its reference, its FLOP and bytes.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>
#include <vector>

namespace fulgur::ops {

struct BenchCase {
  std::string name, label;      // operation; shapes
  double flops = 0, bytes = 0;  // least work and traffic it needs
  std::function<void()> run, reference;
};

inline std::vector<std::function<std::vector<BenchCase>()>>& bench_registry() {
  static std::vector<std::function<std::vector<BenchCase>()>> all;
  return all;
}

struct RegisterBench {
  explicit RegisterBench(std::function<std::vector<BenchCase>()> make) { bench_registry().push_back(std::move(make)); }
};

// Forward and backward of y = f(); gradients of `leaves` are dropped again.
inline std::function<void()> train(std::vector<at::Tensor> leaves, std::function<at::Tensor()> f) {
  return [leaves = std::move(leaves), f = std::move(f)] {
    auto y = f();
    y.backward(at::ones_like(y));
    for (const auto& leaf : leaves) leaf.mutable_grad() = at::Tensor();
  };
}

inline at::Tensor leaf(at::IntArrayRef sizes) { return (at::randn(sizes) * 0.1).requires_grad_(); }

// Documents of `length` rows: key ranges [N, 2], causal.
inline at::Tensor causal(int64_t N, int64_t length) {
  auto row = at::arange(N, at::kInt);
  return at::stack({row - row.remainder(length), row + 1}, 1).contiguous();
}

}  // namespace fulgur::ops
