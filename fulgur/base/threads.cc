#include "fulgur/base/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

namespace fulgur {
namespace {

int allowed_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

std::atomic<int> g_threads{allowed_cores()};

}  // namespace

int threads() { return g_threads; }

void set_threads(int count) { g_threads = count < 1 ? 1 : count; }

void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  if (count <= 1 || g_threads == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::exception_ptr error;
  std::mutex mutex;
  int64_t some = std::max<int64_t>(1, count / (32 * g_threads.load()));  // tasks taken at once: many are short
#pragma omp parallel for schedule(dynamic, some) num_threads(g_threads.load())
  for (int64_t i = 0; i < count; ++i) {
    try {
      task(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fulgur
