// One pool of threads for the whole process: OpenMP's, the same team libtorch uses. A task's result must not depend on
// which thread runs it, so parallel_for hands out whole indices and never splits a reduction.
#pragma once

#include <cstdint>
#include <functional>

namespace fulgur {

// Number of threads parallel_for uses; at the start the number of cores this process may run on.
int threads();
void set_threads(int count);

// Runs task(i) for i in [0, count), each once, in any order. Called from inside a task it runs serially.
// The first exception of a task is rethrown here after all running tasks have ended.
void parallel_for(int64_t count, const std::function<void(int64_t)>& task);

// Lets the calling thread's workers go, until it needs some again. libgomp keeps a team for each thread that had one; with more
// threads in all than cores, none of them spins between two tasks, and every parallel_for waits for a thread to wake up.
void release_workers();

}  // namespace fulgur
