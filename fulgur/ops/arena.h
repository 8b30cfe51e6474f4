// Tensor storage that a process keeps: what one training step frees, the next takes again, so that in steady state no step
// asks the system for memory. (libtorch's own allocator gives large blocks back at once; the kernel then clears every page
// anew, a tenth of a step.) Pages are huge where the system has them. Thread-safe.
#pragma once

#include <cstdint>

namespace fulgur {

// CPU tensors made from now on come from the arena; false where address space cannot be reserved, and nothing changes then.
bool install_arena();

struct ArenaUse {
  int64_t used;  // bytes in use
  int64_t peak;  // most in use since reset_arena_peak
  int64_t held;  // bytes taken from the system; never given back
};

// Bytes in use for a tensor of `bytes`: rounded up, with a header; none below 4 KB, which is malloc's business.
int64_t arena_block(int64_t bytes);

// All zero without an arena.
ArenaUse arena_use();
void reset_arena_peak();

}  // namespace fulgur
