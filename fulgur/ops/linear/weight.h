// How products read a weight, for the .cc files of operations that have one.
#pragma once

#include <vector>

#include "fulgur/ops/op.h"

namespace fulgur::ops {

// How a packed weight is stored: its type says so.
inline Panels panels_of(const Tensor& packed) {
  if (packed.scalar_type() == at::kFloat8_e4m3fn) return Panels::fp8;
  if (packed.scalar_type() == at::kChar) return Panels::int8;
  return packed.scalar_type() == at::kByte ? Panels::int4 : Panels::plain;
}

// A weight [.., outputs, inputs], behind `leading` dimensions; packed ones (see pack in linear.h) have one dimension more.
struct Weight {
  const Tensor& tensor;
  int64_t leading;

  bool packed() const { return tensor.dim() == leading + 3; }
  Panels panels() const { return packed() ? panels_of(tensor) : Panels::none; }
  bool quantised() const { return panels() > Panels::plain; }
  bool valid() const { return packed() ? tensor.size(-1) == kPanel && tensor.is_contiguous() : tensor.dim() == leading + 2; }
  int64_t outputs() const { return packed() ? tensor.size(leading) * kPanel : tensor.size(leading); }
  int64_t inputs() const {
    int64_t lines = tensor.size(leading + 1);
    return quantised() ? panel_layout(panels()).inputs(lines) : lines;
  }

  // Rows of `x`'s type by the weight, or by number `index` of its first dimension; what is left to fill in is A, C and M.
  GemmParams product(const Tensor& x, const char* area, int64_t index = 0) const {
    auto x_type = storage(x, area), type = quantised() ? Storage::bf16 : storage(tensor, area);
    FULGUR_CHECK(!packed() || x_type == Storage::f32 || type == Storage::bf16, "[", area,
                 "] expected packed weights of bf16 for rows of bf16, got float32");
    GemmParams p{};
    p.b =
        static_cast<const char*>(tensor.const_data_ptr()) + (leading > 0 ? index * tensor.stride(0) * tensor.element_size() : 0);
    p.N = outputs(), p.K = inputs();
    p.a_col = 1, p.b_row = tensor.stride(leading + 1), p.b_col = tensor.stride(leading);
    p.a_type = x_type, p.b_type = type;
    p.round_b_to_bf16 = x_type == Storage::bf16 && type == Storage::f32;
    p.b_panels = panels();
    return p;
  }
};

// The A of products with a weight: contiguous rows as they are, or as integers where the weight is stored so. Keeps what it made.
class Rows {
 public:
  explicit Rows(const Tensor& x) : x(x), inputs_(x.size(-1)), bytes_(inputs_ * x.element_size()) {}
  Rows(const Tensor& x, const Weight& weight, const char* area) : Rows(x) {
    if (!integers(weight.panels()) || inputs_ == 0) return;
    auto kernel = FULGUR_CALL(integer_row);
    auto type = storage(x, area);
    int64_t count = x.numel() / inputs_;
    groups_ = (inputs_ + kIntegerGroup - 1) / kIntegerGroup;
    integers_.resize(count * inputs_), groups_of_rows_.resize(count * groups_);
    auto one = [&](int64_t row) {
      kernel(at(row), type, inputs_, integers_.data() + row * inputs_, groups_of_rows_.data() + row * groups_);
    };
    if (x.numel() < 1 << 14)
      for (int64_t row = 0; row < count; ++row) one(row);
    else parallel_for(count, one);
  }

  const Tensor& x;

  // Rows first, first + step, ...
  void give(GemmParams& p, int64_t first = 0, int64_t step = 1) const {
    p.a = at(first), p.a_row = step * inputs_;
    if (groups_of_rows_.empty()) return;
    p.a = integers_.data() + first * inputs_;
    p.a_groups = groups_of_rows_.data() + first * groups_, p.a_groups_row = step * groups_;
  }

 private:
  const char* at(int64_t row) const { return static_cast<const char*>(x.const_data_ptr()) + row * bytes_; }

  int64_t inputs_, bytes_, groups_ = 0;
  std::vector<int8_t> integers_;
  std::vector<IntegerGroup> groups_of_rows_;
};

// Backward passes need weights as training keeps them.
inline void check_plain(const Tensor& weight, int64_t dim, const char* area) {
  FULGUR_CHECK(weight.dim() == dim, "[", area, "] expected a weight that is not packed where a gradient is wanted, got ",
               weight.sizes());
}

}  // namespace fulgur::ops
