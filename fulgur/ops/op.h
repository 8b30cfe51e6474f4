// What an op's .cc file needs to register itself: checks, storage types, typed calls through the dispatcher.
// Not for headers (torch/library.h and autograd are slow to compile).
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "fulgur/base/error.h"
#include "fulgur/base/threads.h"
#include "fulgur/ops/linear/gemm.h"

namespace fulgur::ops {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// f32 or bf16; anything else is the caller's mistake.
inline Storage storage(const Tensor& tensor, const char* area) {
  FULGUR_CHECK(tensor.scalar_type() == at::kFloat || tensor.scalar_type() == at::kBFloat16, "[", area,
               "] expected float32 or bfloat16, got ", tensor.scalar_type());
  return tensor.scalar_type() == at::kFloat ? Storage::f32 : Storage::bf16;
}

// Whether all rows' gradients are one number, spread: what a sum of rows hands back. A loss whose forward pass made the
// gradients of that sum then only scales them.
inline bool equal_weights(const Tensor& gradient_N) {
  return gradient_N.size(0) > 0 && (gradient_N.size(0) == 1 || gradient_N.stride(0) == 0);
}

// Calls fulgur::<name> through the dispatcher: autograd, Meta and CPU kernels are found by it.
// `static const auto op = typed<Signature>("linear"); op.call(...)`.
template <class Signature>
c10::TypedOperatorHandle<Signature> typed(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow((std::string("fulgur::") + name).c_str(), "").typed<Signature>();
}

}  // namespace fulgur::ops
