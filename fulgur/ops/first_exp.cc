// libtorch's exp is MKL's. Where a process calls it first on several threads at once, a part of the result may come from another
// kernel, 3e-5 apart (1 process of 12). A call before main() settles it.
#include <ATen/ops/exp.h>
#include <ATen/ops/zeros.h>

namespace fulgur::ops {
namespace {

[[maybe_unused]] const bool settled = at::exp(at::zeros({64})).defined();

}  // namespace
}  // namespace fulgur::ops
