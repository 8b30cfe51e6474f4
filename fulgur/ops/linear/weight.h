// How products read a weight, for the .cc files of operations that have one.
#pragma once

#include "fulgur/ops/op.h"

namespace fulgur::ops {

// A weight [.., outputs, inputs], behind `leading` dimensions; packed ones (see pack in linear.h) have one dimension more.
struct Weight {
  const Tensor& tensor;
  int64_t leading;

  bool packed() const { return tensor.dim() == leading + 3; }
  bool valid() const { return packed() ? tensor.size(-1) == kPanel && tensor.is_contiguous() : tensor.dim() == leading + 2; }
  int64_t outputs() const { return packed() ? tensor.size(leading) * kPanel : tensor.size(leading); }
  int64_t inputs() const { return tensor.size(leading + 1); }

  // Rows of `x`'s type by the weight, or by number `index` of its first dimension; what is left to fill in is A, C and M.
  GemmParams product(const Tensor& x, const char* area, int64_t index = 0) const {
    auto x_type = storage(x, area), type = storage(tensor, area);
    FULGUR_CHECK(!packed() || x_type == Storage::f32 || type == Storage::bf16, "[", area,
                 "] expected packed weights of bf16 for rows of bf16, got float32");
    GemmParams p{};
    p.b =
        static_cast<const char*>(tensor.const_data_ptr()) + (leading > 0 ? index * tensor.stride(0) * tensor.element_size() : 0);
    p.N = outputs(), p.K = inputs();
    p.a_col = 1, p.b_row = tensor.stride(leading + 1), p.b_col = tensor.stride(leading);
    p.a_type = x_type, p.b_type = type;
    p.round_b_to_bf16 = x_type == Storage::bf16 && type == Storage::f32;
    p.b_panels = packed();
    return p;
  }
};

// Backward passes need weights as training keeps them.
inline void check_plain(const Tensor& weight, int64_t dim, const char* area) {
  FULGUR_CHECK(weight.dim() == dim, "[", area, "] expected a weight that is not packed where a gradient is wanted, got ",
               weight.sizes());
}

}  // namespace fulgur::ops
