// Weights into panels and back (gemm.h). Done once, in plain C++: the bytes are the same on every CPU.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/linear/weight.h"
#include "fulgur/ops/quantize/quantize.h"

namespace fulgur::ops {
namespace {

using Pack = Tensor(const Tensor&, int64_t);

bool can_pack(const Tensor& weight) { return weight.dim() >= 2 && weight.size(-2) % kPanel == 0 && weight.size(-1) % 2 == 0; }

at::ScalarType type_of(WeightFormat format) {
  if (format == WeightFormat::fp8) return at::kFloat8_e4m3fn;
  return format == WeightFormat::int8 ? at::kChar : at::kByte;
}
Panels stored_as(WeightFormat format) {
  if (format == WeightFormat::fp8) return Panels::fp8;
  return format == WeightFormat::int8 ? Panels::int8 : Panels::int4;
}

std::vector<int64_t> packed_sizes(const Tensor& weight, WeightFormat format) {
  FULGUR_CHECK(can_pack(weight), "[pack] expected a weight [.., a multiple of 16 outputs, an even number of inputs], got ",
               weight.sizes());
  auto sizes = weight.sizes().vec();
  int64_t O = weight.size(-2), I = weight.size(-1);
  sizes.back() = kPanel;
  sizes[sizes.size() - 2] = format == WeightFormat::plain ? I : panel_layout(stored_as(format)).lines(I);
  sizes.insert(sizes.end() - 2, O / kPanel);
  return sizes;
}

Tensor pack_plain(const Tensor& weight) {
  int64_t pair = storage(weight, "pack") == Storage::bf16 ? 2 : 1, panels = weight.size(-2) / kPanel;  // inputs side by side
  auto turned = weight.reshape({-1, panels, kPanel, weight.size(-1) / pair, pair}).transpose(2, 3);
  return turned.clone(at::MemoryFormat::Contiguous).view(packed_sizes(weight, WeightFormat::plain));
}

uint16_t bf16_bits(float value) { return c10::BFloat16(value).x; }
float bf16_value(uint16_t bits) { return c10::BFloat16(bits, c10::BFloat16::from_bits()); }

// Whole numbers q[i] in [least, 127 or 7] with x about q * scale; returns the squared error.
double round_group(const float* x, int64_t count, float scale, int least, int most, int8_t* q) {
  double error = 0;
  for (int64_t i = 0; i < count; ++i) {
    float value = scale == 0 ? 0 : std::nearbyint(x[i] / scale);
    q[i] = int8_t(std::clamp(value, float(least), float(most)));
    double off = x[i] - double(q[i]) * scale;
    error += off * off;
  }
  return error;
}

float largest(const float* x, int64_t count) {  // of the largest magnitude, with its sign
  float best = 0;
  for (int64_t i = 0; i < count; ++i)
    if (std::fabs(x[i]) > std::fabs(best)) best = x[i];
  return best;
}

float int8_group(const float* x, int64_t count, int8_t* q) {
  float scale = bf16_value(bf16_bits(std::fabs(largest(x, count)) / 127));
  round_group(x, count, scale, -127, 127, q);
  return scale;
}

// The extreme value becomes about -8; among scales near that the best.
float int4_group(const float* x, int64_t count, int8_t* q) {
  float extreme = largest(x, count), best_scale = 0;
  double best = INFINITY;
  int8_t trial[32];
  for (float divisor : {-8.0f, -7.75f, -7.5f, -7.25f, -7.0f, -8.25f, -8.5f, -9.0f, 7.0f}) {
    float scale = bf16_value(bf16_bits(extreme / divisor));
    double error = round_group(x, count, scale, -8, 7, trial);
    if (error >= best) continue;
    best = error, best_scale = scale;
    std::copy_n(trial, count, q);
  }
  return best_scale;
}

// One panel out of 16 rows of I weights, and back.
void pack_integers(const float* rows, int64_t I, Panels panels, uint8_t* to) {
  PanelLayout layout = panel_layout(panels);
  for (int64_t k = 0; k < I; k += layout.group) {
    int64_t count = std::min(layout.group, I - k), bytes = kPanel * layout.data_lines(count);
    std::fill_n(to, bytes, uint8_t(0));
    for (int64_t o = 0; o < kPanel; ++o) {
      int8_t q[kIntegerGroup];
      const float* x = rows + o * I + k;
      float scale = panels == Panels::int8 ? int8_group(x, count, q) : int4_group(x, count, q);
      uint16_t bits = bf16_bits(scale);
      std::memcpy(to + bytes + 2 * o, &bits, 2);
      for (int64_t i = 0; i < count; ++i) {
        int64_t line = i / 4, at = 4 * o + i % 4;
        if (panels == Panels::int8) to[4 * kPanel * line + at] = uint8_t(q[i] + 128);
        else to[4 * kPanel * (line / 2) + at] |= uint8_t((q[i] + 8) << 4 * (line % 2));
      }
    }
    to += bytes + kPanel * layout.scale_lines;
  }
}

void unpack_integers(const uint8_t* from, int64_t I, Panels panels, float* rows) {
  PanelLayout layout = panel_layout(panels);
  for (int64_t k = 0; k < I; k += layout.group) {
    int64_t count = std::min(layout.group, I - k), bytes = kPanel * layout.data_lines(count);
    for (int64_t o = 0; o < kPanel; ++o) {
      uint16_t bits;
      std::memcpy(&bits, from + bytes + 2 * o, 2);
      for (int64_t i = 0; i < count; ++i) {
        int64_t line = i / 4, at = 4 * o + i % 4;
        int q = panels == Panels::int8 ? from[4 * kPanel * line + at] - 128
                                       : (from[4 * kPanel * (line / 2) + at] >> 4 * (line % 2) & 15) - 8;
        rows[o * I + k + i] = float(q) * bf16_value(bits);
      }
    }
    from += bytes + kPanel * layout.scale_lines;
  }
}

// The bytes and the scales of a matrix's panel in blocks of 128 x 128, and back.
struct Blocks {
  uint8_t* bytes;  // [O, I]
  float* scales;   // [O / 128, I / 128], rounded up
  int64_t I;

  // Lines of 16 values and where in the matrix they belong, behind each block the line of its scale.
  template <class Each>
  void for_lines(int64_t panel, uint8_t* line, const Each& each) const {
    constexpr int64_t kBlock = 128;
    float* scale = scales + panel * kPanel / kBlock * ((I + kBlock - 1) / kBlock);
    for (int64_t k = 0; k < I; k += kBlock, line += kPanel, ++scale) {
      for (int64_t i = k; i < std::min(I, k + kBlock); ++i, line += kPanel) each.values(line, bytes + panel * kPanel * I + i, I);
      each.scale(line, *scale);
    }
  }
};

struct IntoLines {
  void values(uint8_t* line, const uint8_t* from, int64_t stride) const {
    for (int64_t o = 0; o < kPanel; ++o) line[o] = from[o * stride];
  }
  void scale(uint8_t* line, float scale) const {
    for (int64_t i = 0; i < 4; ++i) std::memcpy(line + 4 * i, &scale, 4);
  }
};
struct OutOfLines {
  void values(const uint8_t* line, uint8_t* to, int64_t stride) const {
    for (int64_t o = 0; o < kPanel; ++o) to[o * stride] = line[o];
  }
  void scale(const uint8_t* line, float& scale) const { std::memcpy(&scale, line, 4); }
};

uint8_t* bytes_of(const Tensor& tensor) { return static_cast<uint8_t*>(const_cast<void*>(tensor.const_data_ptr())); }

Tensor pack_cpu(const Tensor& weight, int64_t number) {
  auto format = WeightFormat(number);
  if (format == WeightFormat::plain) return pack_plain(weight);
  auto out = at::empty(packed_sizes(weight, format), weight.options().dtype(type_of(format)));
  int64_t O = weight.size(-2), I = weight.size(-1), panels = O / kPanel, size = out.size(-2) * kPanel;
  auto flat = weight.to(at::kFloat).contiguous().view({-1, O, I});
  for (int64_t e = 0; e < flat.size(0); ++e) {
    auto matrix = flat.select(0, e);
    uint8_t* to = bytes_of(out) + e * panels * size;
    if (format == WeightFormat::fp8) {
      auto [bytes, scales] = quantize_blocks(matrix, ScaleRule::pow2);
      float most = scales.max().item<float>();
      FULGUR_CHECK(most <= 128, "[pack] expected weights of at most 448 * 128 for fp8, got a block's scale of ", most);
      Blocks blocks{bytes_of(bytes), scales.mutable_data_ptr<float>(), I};
      parallel_for(panels, [&](int64_t i) { blocks.for_lines(i, to + i * size, IntoLines{}); });
    } else {
      const float* from = matrix.const_data_ptr<float>();
      parallel_for(panels, [&](int64_t i) { pack_integers(from + i * kPanel * I, I, stored_as(format), to + i * size); });
    }
  }
  return out;
}

Tensor pack_meta(const Tensor& weight, int64_t number) {
  auto format = WeightFormat(number);
  auto type = format == WeightFormat::plain ? weight.scalar_type() : type_of(format);
  return at::empty(packed_sizes(weight, format), weight.options().dtype(type));
}

std::vector<int64_t> unpacked_sizes(const Tensor& packed) {
  FULGUR_CHECK(packed.dim() >= 3 && packed.size(-1) == kPanel, "[unpack] expected a packed weight [.., panels, lines, 16], got ",
               packed.sizes());
  auto sizes = packed.sizes().vec();
  sizes.resize(sizes.size() - 1);
  auto panels = panels_of(packed);
  sizes[sizes.size() - 2] *= kPanel;
  if (panels != Panels::plain) sizes.back() = panel_layout(panels).inputs(sizes.back());
  return sizes;
}

Tensor unpack_cpu(const Tensor& packed_in) {
  auto packed = packed_in.contiguous();
  auto sizes = unpacked_sizes(packed);
  int64_t O = sizes[sizes.size() - 2], I = sizes.back(), panels = O / kPanel, size = packed.size(-2) * kPanel;
  auto format = panels_of(packed);
  if (format == Panels::plain) {
    int64_t pair = storage(packed, "unpack") == Storage::bf16 ? 2 : 1;
    return packed.reshape({-1, panels, I / pair, kPanel, pair})
        .transpose(2, 3)
        .to(at::kFloat)
        .clone(at::MemoryFormat::Contiguous)
        .view(sizes);
  }
  auto out = at::empty(sizes, packed.options().dtype(at::kFloat));
  auto flat = out.view({-1, O, I});
  for (int64_t e = 0; e < flat.size(0); ++e) {
    uint8_t* from = bytes_of(packed) + e * panels * size;
    if (format == Panels::fp8) {
      auto bytes = at::empty({O, I}, packed.options().dtype(at::kByte));
      auto scales = at::empty({(O + 127) / 128, (I + 127) / 128}, out.options());
      Blocks blocks{bytes_of(bytes), scales.mutable_data_ptr<float>(), I};
      for (int64_t i = 0; i < panels; ++i) blocks.for_lines(i, from + i * size, OutOfLines{});
      flat.select(0, e).copy_(dequantize_blocks(bytes, scales));
    } else {
      float* to = flat.select(0, e).mutable_data_ptr<float>();
      parallel_for(panels, [&](int64_t i) { unpack_integers(from + i * size, I, format, to + i * kPanel * I); });
    }
  }
  return out;
}

Tensor unpack_meta(const Tensor& packed) { return at::empty(unpacked_sizes(packed), packed.options().dtype(at::kFloat)); }

TORCH_LIBRARY_FRAGMENT(fulgur, m) {
  m.def("pack(Tensor weight, int format=0) -> Tensor");
  m.def("unpack(Tensor packed) -> Tensor");
}
TORCH_LIBRARY_IMPL(fulgur, CPU, m) {
  m.impl("pack", pack_cpu);
  m.impl("unpack", unpack_cpu);
}
TORCH_LIBRARY_IMPL(fulgur, Meta, m) {
  m.impl("pack", pack_meta);
  m.impl("unpack", unpack_meta);
}

}  // namespace

Tensor pack(const Tensor& weight, WeightFormat format) {
  static const auto op = typed<Pack>("pack");
  if (!can_pack(weight)) return weight;
  bool fits = format == WeightFormat::plain || weight.size(-1) % panel_layout(stored_as(format)).multiple == 0;
  return op.call(weight, int64_t(fits ? format : WeightFormat::plain));
}

Tensor unpack(const Tensor& packed) {
  static const auto op = typed<Tensor(const Tensor&)>("unpack");
  return op.call(packed);
}

}  // namespace fulgur::ops
