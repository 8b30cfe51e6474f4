// Which instruction set the kernels use. Chosen once from the CPU, or by set_isa (flag --isa); results differ between
// sets, so a run records the one it used. avx512bf16 is avx512 with bf16 products in pairs (vdpbf16ps): the default on AMD,
// where it doubles their rate, not on Intel, where f32 products of widened bf16 were as fast or faster. f32 work is equal.
#pragma once

#include <string>

namespace fulgur {

enum class Isa { portable, avx2, avx512, avx512bf16 };

Isa isa();
const char* isa_name(Isa isa);
// "portable", "avx2", "avx512", "avx512bf16"; throws InputError when unknown or when this CPU lacks it.
void set_isa(const std::string& name);

// Whether this CPU and its kernel have AMX, whose tiles multiply integers. No result depends on it.
bool integer_tiles();

}  // namespace fulgur

// Declares `name` once for each instruction set: FULGUR_KERNEL(void, gemm_serial, (const GemmParams&)).
#define FULGUR_KERNEL(result, name, arguments) \
  namespace portable {                         \
  result name arguments;                       \
  }                                            \
  namespace avx2 {                             \
  result name arguments;                       \
  }                                            \
  namespace avx512 {                           \
  result name arguments;                       \
  }                                            \
  namespace avx512bf16 {                       \
  result name arguments;                       \
  }

// Calls the kernel of the chosen set: FULGUR_CALL(gemm_serial)(params). Only inside namespace fulgur.
#define FULGUR_CALL(name)                                           \
  (::fulgur::isa() == ::fulgur::Isa::avx512bf16 ? &avx512bf16::name \
   : ::fulgur::isa() == ::fulgur::Isa::avx512   ? &avx512::name     \
   : ::fulgur::isa() == ::fulgur::Isa::avx2     ? &avx2::name       \
                                                : &portable::name)
