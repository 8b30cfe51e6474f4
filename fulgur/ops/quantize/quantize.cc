#include "fulgur/ops/quantize/quantize.h"

#include "fulgur/ops/op.h"
#include "fulgur/ops/quantize/kernels.h"

namespace fulgur::ops {
namespace {

constexpr int64_t kBlock = 1 << 14;  // elements a task has at least

// work(first, last) for stretches of whole rows of `size` elements.
template <class Work>
void for_blocks(int64_t rows, int64_t size, const Work& work) {
  int64_t high = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, size));
  parallel_for((rows + high - 1) / high, [&](int64_t i) { work(i * high, std::min(rows, (i + 1) * high)); });
}

// Groups of `high` rows and kQuantizeGroup columns.
std::tuple<Tensor, Tensor> quantize(const Tensor& x_in, ScaleRule rule, int64_t high) {
  FULGUR_CHECK(x_in.dim() == 2, "[quantize] expected rows [R, C], got ", x_in.sizes());
  auto x = x_in.to(at::kFloat).contiguous();
  int64_t R = x.size(0), C = x.size(1), bands = (R + high - 1) / high;
  auto bytes = at::empty({R, C}, x.options().dtype(at::kByte));
  auto scales = at::empty({bands, (C + kQuantizeGroup - 1) / kQuantizeGroup}, x.options());
  QuantizeParams params{x.const_data_ptr<float>(),
                        bytes.mutable_data_ptr<uint8_t>(),
                        scales.mutable_data_ptr<float>(),
                        R,
                        C,
                        high,
                        rule == ScaleRule::cache ? 448e-4f : 1e-4f,
                        rule != ScaleRule::plain};
  auto kernel = FULGUR_CALL(quantize_band);
  for_blocks(bands, high * C, [&](int64_t first, int64_t last) {
    for (int64_t band = first; band < last; ++band) kernel(params, band);
  });
  return {bytes, scales};
}

Tensor dequantize(const Tensor& bytes_in, const Tensor& scales_in, int64_t high) {
  auto bytes = bytes_in.contiguous(), scales = scales_in.contiguous();
  FULGUR_CHECK(bytes.dim() == 2 && scales.dim() == 2 && scales.size(0) == (bytes.size(0) + high - 1) / high &&
                   scales.size(1) == (bytes.size(1) + kQuantizeGroup - 1) / kQuantizeGroup,
               "[quantize] expected a scale for each group of ", bytes.sizes(), ", got ", scales.sizes());
  int64_t R = bytes.size(0), C = bytes.size(1);
  auto x = at::empty({R, C}, scales.options());
  DequantizeParams params{
      bytes.const_data_ptr<uint8_t>(), scales.const_data_ptr<float>(), x.mutable_data_ptr<float>(), R, C, high};
  auto kernel = FULGUR_CALL(dequantize_row);
  for_blocks(R, C, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) kernel(params, row);
  });
  return x;
}

Tensor hadamard_cpu(const Tensor& x_in) {
  int64_t n = x_in.size(-1);
  FULGUR_CHECK(n > 0 && (n & (n - 1)) == 0, "[hadamard] expected a size that is a power of two, got ", n);
  auto x = x_in.to(at::kFloat).contiguous();
  auto y = at::empty(x.sizes(), x.options());
  const float* from = x.const_data_ptr<float>();
  float* to = y.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(hadamard_rows);
  for_blocks(x.numel() / n, n, [&](int64_t first, int64_t last) { kernel(from + first * n, to + first * n, last - first, n); });
  return y.to(x_in.scalar_type());
}

Tensor simulate_cpu(const Tensor& x_in) {
  auto x = x_in.contiguous(), y = at::empty(x.sizes(), x.options());
  auto type = storage(x, "simulate_fp8");
  int64_t C = x.size(-1), stride = C * int64_t(x.element_size());
  const char* from = static_cast<const char*>(x.const_data_ptr());
  char* to = static_cast<char*>(y.mutable_data_ptr());
  auto kernel = FULGUR_CALL(simulate_fp8_row);
  for_blocks(C == 0 ? 0 : x.numel() / C, C, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) kernel(from + row * stride, to + row * stride, type, C);
  });
  return y;
}

Tensor like_meta(const Tensor& x) { return at::empty_symint(x.sym_sizes(), x.options()); }

struct HadamardFunction : torch::autograd::Function<HadamardFunction> {
  static Tensor forward(AutogradContext*, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::hadamard(x);
  }
  static variable_list backward(AutogradContext*, variable_list grads) { return {ops::hadamard(grads[0])}; }
};

struct SimulateFunction : torch::autograd::Function<SimulateFunction> {
  static Tensor forward(AutogradContext*, const Tensor& x) {
    at::AutoDispatchBelowADInplaceOrView below;
    return ops::simulate_fp8(x);
  }
  static variable_list backward(AutogradContext*, variable_list grads) { return {grads[0]}; }
};

Tensor hadamard_autograd(const Tensor& x) { return HadamardFunction::apply(x); }
Tensor simulate_autograd(const Tensor& x) { return SimulateFunction::apply(x); }

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("hadamard(Tensor x) -> Tensor");
  m.def("simulate_fp8(Tensor x) -> Tensor");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("hadamard", hadamard_cpu);
  m.impl("simulate_fp8", simulate_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("hadamard", like_meta);
  m.impl("simulate_fp8", like_meta);
}
TORCH_LIBRARY_IMPL(fulgur, Autograd, m) {
  m.impl("hadamard", hadamard_autograd);
  m.impl("simulate_fp8", simulate_autograd);
}

}  // namespace

Tensor to_e4m3(const Tensor& x_in) {
  auto x = x_in.to(at::kFloat).contiguous();
  auto bytes = at::empty(x.sizes(), x.options().dtype(at::kByte));
  const float* from = x.const_data_ptr<float>();
  uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
  auto kernel = FULGUR_CALL(e4m3_encode);
  for_blocks(x.numel(), 1, [&](int64_t first, int64_t last) { kernel(from + first, last - first, to + first); });
  return bytes;
}

Tensor from_e4m3(const Tensor& bytes_in) {
  auto bytes = bytes_in.contiguous();
  auto x = at::empty(bytes.sizes(), bytes.options().dtype(at::kFloat));
  const uint8_t* from = bytes.const_data_ptr<uint8_t>();
  float* to = x.mutable_data_ptr<float>();
  auto kernel = FULGUR_CALL(e4m3_decode);
  for_blocks(x.numel(), 1, [&](int64_t first, int64_t last) { kernel(from + first, last - first, to + first); });
  return x;
}

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x_RC, ScaleRule rule) { return quantize(x_RC, rule, 1); }
std::tuple<Tensor, Tensor> quantize_blocks(const Tensor& x_RC, ScaleRule rule) { return quantize(x_RC, rule, kQuantizeGroup); }
Tensor dequantize_rows(const Tensor& bytes_RC, const Tensor& scales) { return dequantize(bytes_RC, scales, 1); }
Tensor dequantize_blocks(const Tensor& bytes_RC, const Tensor& scales) { return dequantize(bytes_RC, scales, kQuantizeGroup); }

Tensor hadamard(const Tensor& x) {
  static const auto op = typed<Tensor(const Tensor&)>("hadamard");
  return op.call(x);
}

Tensor simulate_fp8(const Tensor& x) {
  static const auto op = typed<Tensor(const Tensor&)>("simulate_fp8");
  return op.call(x);
}

}  // namespace fulgur::ops
