#include "fulgur/ops/peaks.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "fulgur/base/threads.h"
#include "fulgur/ops/linear/linear.h"

namespace fulgur::ops {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_of(const std::function<void()>& work) {
  auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double peak_flops(double seconds) {
  c10::AutoGradMode no_grad(false);
  constexpr int64_t n = 1024;
  auto a = at::ones({n, n}), b = at::ones({n, n});
  int before = at::get_num_threads();
  at::set_num_threads(threads());
  double best = 0;
  auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (int round = 0; round < 3 || Clock::now() < end; ++round) {
    best = std::max(best, 2.0 * n * n * n / seconds_of([&] { at::matmul(a, b); }));
    best = std::max(best, 2.0 * n * n * n / seconds_of([&] { linear(a, b); }));
  }
  at::set_num_threads(before);
  return best;
}

constexpr int64_t kBlock = 1 << 17;  // words

Memory::Memory(int64_t bytes) : words_(bytes / 8 / kBlock * kBlock, 1) {}

// Four streams a thread: one alone leaves a third of the bandwidth unused where the hardware fetches ahead within a page.
double Memory::bandwidth() const {
  std::atomic<int64_t> sink{0};
  return double(8 * words_.size()) / seconds_of([&] {
           parallel_for(int64_t(words_.size()) / kBlock, [&](int64_t block) {
             constexpr int64_t kStream = kBlock / 4;
             const int64_t* at = words_.data() + block * kBlock;
             int64_t sums[4][8] = {};
             for (int64_t i = 0; i < kStream; i += 8)
               for (int stream = 0; stream < 4; ++stream)
                 for (int j = 0; j < 8; ++j) sums[stream][j] += at[stream * kStream + i + j];
             int64_t sum = 0;
             for (const auto& stream : sums)
               for (int64_t s : stream) sum += s;
             sink += sum;
           });
         });
}

}  // namespace fulgur::ops
