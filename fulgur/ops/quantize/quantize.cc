#include "fulgur/ops/quantize/quantize.h"

#include <cmath>
#include <cstring>

#include "fulgur/ops/op.h"

// Storage formats, not a hot path yet: plain loops on one thread.
namespace fulgur::ops {
namespace {

constexpr int64_t kGroup = 128;

// e4m3fn: 4 exponent bits with bias 7, 3 mantissa bits, no infinity; the largest value is 448.
uint8_t encode(float x) {
  if (std::isnan(x)) return 0x7f;
  uint8_t sign = std::signbit(x) ? 0x80 : 0;
  float magnitude = std::min(std::fabs(x), 448.0f);
  if (magnitude < 0x1p-10f) return sign;  // half of the smallest subnormal is a tie, which goes to even: 0
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude in [0.5, 1) * 2^exponent
  int unit = std::max(exponent - 1, -6) - 3;
  int steps = int(std::nearbyint(std::ldexp(magnitude, -unit)));  // nearest even; 8..16 for normals
  if (unit == -9) return sign | uint8_t(steps);                   // subnormal, or carried into the first normal
  return sign | uint8_t(((unit + 9) << 3) + steps);               // a carry moves into the exponent by itself
}

float decode(uint8_t byte) {
  int exponent = (byte >> 3) & 15, mantissa = byte & 7;
  if ((byte & 0x7f) == 0x7f) return NAN;
  float magnitude = exponent == 0 ? std::ldexp(float(mantissa), -9) : std::ldexp(float(8 + mantissa), exponent - 10);
  return byte & 0x80 ? -magnitude : magnitude;
}

float scale_of(float amax, ScaleRule rule) {
  float scale = std::max(amax, 1e-4f) * (1.0f / 448.0f);
  if (rule == ScaleRule::plain) return scale;
  uint32_t bits;
  std::memcpy(&bits, &scale, 4);
  return std::ldexp(1.0f, int(bits >> 23) - 127 + ((bits & 0x7fffff) != 0));
}

// Groups of `high` rows and kGroup columns.
std::tuple<Tensor, Tensor> quantize(const Tensor& x_in, ScaleRule rule, int64_t high) {
  FULGUR_CHECK(x_in.dim() == 2, "[quantize] expected rows [R, C], got ", x_in.sizes());
  auto x = x_in.to(at::kFloat).contiguous();
  int64_t R = x.size(0), C = x.size(1), columns = (C + kGroup - 1) / kGroup;
  auto bytes = at::empty({R, C}, x.options().dtype(at::kByte));
  auto scales = at::empty({(R + high - 1) / high, columns}, x.options());
  const float* from = x.const_data_ptr<float>();
  uint8_t* to = bytes.mutable_data_ptr<uint8_t>();
  float* scale = scales.mutable_data_ptr<float>();
  for (int64_t r0 = 0; r0 < R; r0 += high)
    for (int64_t c0 = 0; c0 < C; c0 += kGroup) {
      int64_t r1 = std::min(R, r0 + high), c1 = std::min(C, c0 + kGroup);
      float amax = 0;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c) amax = std::max(amax, std::fabs(from[r * C + c]));
      float s = *scale++ = scale_of(amax, rule);
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t c = c0; c < c1; ++c) to[r * C + c] = encode(from[r * C + c] / s);
    }
  return {bytes, scales};
}

Tensor dequantize(const Tensor& bytes_in, const Tensor& scales_in, int64_t high) {
  auto bytes = bytes_in.contiguous(), scales = scales_in.contiguous();
  FULGUR_CHECK(bytes.dim() == 2 && scales.dim() == 2 && scales.size(0) == (bytes.size(0) + high - 1) / high &&
                   scales.size(1) == (bytes.size(1) + kGroup - 1) / kGroup,
               "[quantize] expected a scale for each group of ", bytes.sizes(), ", got ", scales.sizes());
  int64_t R = bytes.size(0), C = bytes.size(1);
  auto x = at::empty({R, C}, scales.options());
  const uint8_t* from = bytes.const_data_ptr<uint8_t>();
  const float* scale = scales.const_data_ptr<float>();
  float* to = x.mutable_data_ptr<float>();
  for (int64_t r = 0; r < R; ++r)
    for (int64_t c = 0; c < C; ++c) to[r * C + c] = decode(from[r * C + c]) * scale[r / high * scales.size(1) + c / kGroup];
  return x;
}

Tensor hadamard_cpu(const Tensor& x_in) {
  int64_t n = x_in.size(-1);
  FULGUR_CHECK(n > 0 && (n & (n - 1)) == 0, "[hadamard] expected a size that is a power of two, got ", n);
  auto x = x_in.to(at::kFloat).contiguous().clone();
  float* row = x.mutable_data_ptr<float>();
  float unit = 1 / std::sqrt(float(n));
  for (int64_t i = 0; i < x.numel() / n; ++i, row += n) {
    for (int64_t half = 1; half < n; half *= 2)
      for (int64_t start = 0; start < n; start += 2 * half)
        for (int64_t j = start; j < start + half; ++j) {
          float a = row[j], b = row[j + half];
          row[j] = a + b, row[j + half] = a - b;
        }
    for (int64_t j = 0; j < n; ++j) row[j] *= unit;
  }
  return x.to(x_in.scalar_type());
}

Tensor simulate_cpu(const Tensor& x) {
  auto rows = x.reshape({-1, x.size(-1)});
  auto [bytes, scales] = quantize(rows, ScaleRule::pow2, 1);
  return dequantize(bytes, scales, 1).to(x.scalar_type()).view(x.sizes());
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
  for (int64_t i = 0; i < x.numel(); ++i) bytes.mutable_data_ptr<uint8_t>()[i] = encode(x.const_data_ptr<float>()[i]);
  return bytes;
}

Tensor from_e4m3(const Tensor& bytes_in) {
  auto bytes = bytes_in.contiguous();
  auto x = at::empty(bytes.sizes(), bytes.options().dtype(at::kFloat));
  for (int64_t i = 0; i < x.numel(); ++i) x.mutable_data_ptr<float>()[i] = decode(bytes.const_data_ptr<uint8_t>()[i]);
  return x;
}

std::tuple<Tensor, Tensor> quantize_rows(const Tensor& x_RC, ScaleRule rule) { return quantize(x_RC, rule, 1); }
std::tuple<Tensor, Tensor> quantize_blocks(const Tensor& x_RC, ScaleRule rule) { return quantize(x_RC, rule, kGroup); }
Tensor dequantize_rows(const Tensor& bytes_RC, const Tensor& scales) { return dequantize(bytes_RC, scales, 1); }
Tensor dequantize_blocks(const Tensor& bytes_RC, const Tensor& scales) { return dequantize(bytes_RC, scales, kGroup); }

Tensor hadamard(const Tensor& x) {
  static const auto op = typed<Tensor(const Tensor&)>("hadamard");
  return op.call(x);
}

Tensor simulate_fp8(const Tensor& x) {
  static const auto op = typed<Tensor(const Tensor&)>("simulate_fp8");
  return op.call(x);
}

}  // namespace fulgur::ops
