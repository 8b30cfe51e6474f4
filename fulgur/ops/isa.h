// Which instruction set the kernels use. Chosen once from the CPU, or by set_isa (flag --isa); results differ between
// sets, so a run records the one it used.
#pragma once

#include <string>

namespace fulgur {

enum class Isa { portable, avx2, avx512 };

Isa isa();
const char* isa_name(Isa isa);
// "portable", "avx2", "avx512"; throws InputError when unknown or when this CPU lacks it.
void set_isa(const std::string& name);

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
  }

// Calls the kernel of the chosen set: FULGUR_CALL(gemm_serial)(params). Only inside namespace fulgur.
#define FULGUR_CALL(name)                                   \
  (::fulgur::isa() == ::fulgur::Isa::avx512 ? &avx512::name \
   : ::fulgur::isa() == ::fulgur::Isa::avx2 ? &avx2::name   \
                                            : &portable::name)
