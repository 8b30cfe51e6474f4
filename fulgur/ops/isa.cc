#include "fulgur/ops/isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

bool supported(Isa isa) {
  if (isa == Isa::portable) return true;
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
  return isa == Isa::avx512 ? avx512 : avx512 && __builtin_cpu_supports("avx512bf16");
}

Isa best() {
  if (supported(Isa::avx512bf16) && __builtin_cpu_is("amd")) return Isa::avx512bf16;
  if (supported(Isa::avx512)) return Isa::avx512;
  return supported(Isa::avx2) ? Isa::avx2 : Isa::portable;
}

std::atomic<Isa> g_isa{best()};

// The kernel gives a process room for tiles when it asks.
bool ask_for_tiles() {
#if defined(__x86_64__)
  constexpr int kAskForState = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  bool amx = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3;  // tiles, and their integers
  return amx && syscall(SYS_arch_prctl, kAskForState, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool integer_tiles() {
  static const bool have = ask_for_tiles();
  return have;
}

Isa isa() { return g_isa.load(std::memory_order_relaxed); }

const char* isa_name(Isa isa) {
  return isa == Isa::avx512bf16 ? "avx512bf16" : isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

void set_isa(const std::string& name) {
  for (Isa candidate : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (name != isa_name(candidate)) continue;
    FULGUR_CHECK(supported(candidate), "[isa] expected an instruction set of this CPU, got ", name,
                 "\n  hint: the best one here is ", isa_name(best()));
    g_isa = candidate;
    return;
  }
  throw InputError(cat("[isa] expected portable, avx2, avx512 or avx512bf16, got ", name));
}

}  // namespace fulgur
