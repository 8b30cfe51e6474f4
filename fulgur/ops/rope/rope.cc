#include "fulgur/ops/rope/rope.h"

#include <cmath>

#include "fulgur/ops/op.h"
#include "fulgur/ops/rope/kernels.h"

namespace fulgur::ops {
namespace {

using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, int64_t, bool, bool);

Tensor rope_cpu(const Tensor& x_in, const Tensor& cos_in, const Tensor& sin_in, int64_t offset, bool halves, bool inverse) {
  auto x = x_in.stride(-1) == 1 ? x_in : x_in.contiguous();
  auto cos = cos_in.contiguous(), sin = sin_in.contiguous();
  FULGUR_CHECK(x.dim() == 3 && cos.dim() == 2 && cos.size(0) == x.size(0),
               "[rope] expected rows [N, heads, size] and angles [N, size/2], got ", x.sizes(), " and ", cos.sizes());
  FULGUR_CHECK(offset >= 0 && offset + 2 * cos.size(1) <= x.size(2), "[rope] expected rows of at least ",
               offset + 2 * cos.size(1), ", got ", x.size(2));
  auto y = at::empty(x.sizes(), x.options());
  RopeParams params{x.const_data_ptr(),
                    y.mutable_data_ptr(),
                    cos.const_data_ptr<float>(),
                    sin.const_data_ptr<float>(),
                    x.size(1),
                    x.size(2),
                    2 * cos.size(1),
                    offset,
                    x.stride(0),
                    x.stride(1),
                    halves,
                    inverse,
                    storage(x, "rope")};
  auto kernel = FULGUR_CALL(rope_row);
  constexpr int64_t kBlock = 64;
  int64_t rows = x.size(0);
  parallel_for((rows + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) kernel(params, row);
  });
  return y;
}

Tensor rope_meta(const Tensor& x, const Tensor&, const Tensor&, int64_t, bool, bool) {
  return at::empty_symint(x.sym_sizes(), x.options());
}

Tensor call(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t offset, bool halves, bool inverse) {
  static const auto op = typed<Signature>("rope");
  return op.call(x, cos, sin, offset, halves, inverse);
}

// The gradient of a rotation is the rotation back.
struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t offset, bool halves,
                        bool inverse) {
    at::AutoDispatchBelowADInplaceOrView below;
    ctx->save_for_backward({cos, sin});
    ctx->saved_data["offset"] = offset;
    ctx->saved_data["halves"] = halves;
    ctx->saved_data["inverse"] = inverse;
    return call(x, cos, sin, offset, halves, inverse);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto saved = ctx->get_saved_variables();
    auto dx = call(grads[0], saved[0], saved[1], ctx->saved_data["offset"].toInt(), ctx->saved_data["halves"].toBool(),
                   !ctx->saved_data["inverse"].toBool());
    return {dx, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor rope_autograd(const Tensor& x, const Tensor& cos, const Tensor& sin, int64_t offset, bool halves, bool inverse) {
  return RopeFunction::apply(x, cos, sin, offset, halves, inverse);
}

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("rope(Tensor x, Tensor cos, Tensor sin, int offset, bool halves, bool inverse) -> Tensor");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) { m.impl("rope", rope_cpu); }
TORCH_LIBRARY_IMPL(fulgur, Meta, m) { m.impl("rope", rope_meta); }
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) { m.impl("rope", rope_autograd); }

}  // namespace

Rotation rotation(const Tensor& positions_N, const std::vector<float>& frequencies) {
  auto positions = positions_N.to(at::kInt).contiguous();
  int64_t rows = positions.size(0), half = int64_t(frequencies.size());
  auto options = positions.options().dtype(at::kFloat);
  Rotation out{at::empty({rows, half}, options), at::empty({rows, half}, options)};
  const int* position = positions.const_data_ptr<int>();
  float* cos = out.cos_NP.mutable_data_ptr<float>();
  float* sin = out.sin_NP.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < half; ++j) {
      float angle = float(position[i]) * frequencies[j];
      cos[i * half + j] = std::cos(angle);
      sin[i * half + j] = std::sin(angle);
    }
  return out;
}

Tensor rope(const Tensor& x_NHE, const Rotation& rotation, int64_t offset, Pairing pairing) {
  return call(x_NHE, rotation.cos_NP, rotation.sin_NP, offset, pairing == Pairing::halves, false);
}

}  // namespace fulgur::ops
