#include "fulgur/base/threads.h"

#include <omp.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>

// OpenMP orders a region's start before its tasks and these before its end, by means the thread sanitizer cannot see: told here.
// The build leaves this file uninstrumented then, for what the compiler makes of the region would be reported.
#ifdef FULGUR_TELL_TSAN
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

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

void release_workers() { omp_pause_resource_all(omp_pause_soft); }

void parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  if (count <= 1 || g_threads == 1 || omp_in_parallel()) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::exception_ptr error;
  std::mutex mutex;
  int64_t some = std::max<int64_t>(1, count / (32 * g_threads.load()));  // tasks taken at once: many are short
  char begun, ended;
  __tsan_release(&begun);
#pragma omp parallel for schedule(dynamic, some) num_threads(g_threads.load())
  for (int64_t i = 0; i < count; ++i) {
    __tsan_acquire(&begun);
    try {
      task(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
    }
    __tsan_release(&ended);
  }
  __tsan_acquire(&ended);
  if (error) std::rethrow_exception(error);
}

}  // namespace fulgur
