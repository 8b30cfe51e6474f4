#include "fulgur/ops/linear/gemm_kernel.h"

namespace fulgur::FULGUR_ISA {

void gemm_tile(const GemmParams& p, int64_t m0, int64_t m1, int64_t n0, int64_t n1) { gemm_region(p, m0, m1, n0, n1); }

}  // namespace fulgur::FULGUR_ISA
