#include "fulgur/ops/cached_keys.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "fulgur/base/error.h"
#include "fulgur/ops/pages.h"
#include "fulgur/ops/quantize/quantize.h"

namespace fulgur::ops {
namespace {

constexpr int64_t kGroup = 128;  // latents that share a scale

KeyFormat format_of(const at::Tensor& keys) {
  if (keys.scalar_type() == at::kByte) return KeyFormat::fp8;
  return keys.scalar_type() == at::kChar ? KeyFormat::int8 : KeyFormat::plain;
}

int64_t latent_bytes(int64_t R, int64_t P) { return R + (R + kGroup - 1) / kGroup * 4 + 2 * P; }

// Parts of quantised pages of indexer keys: the numbers with a key's own dimension first, [pages, 64, ..], and the scales.
struct IndexPages {
  explicit IndexPages(const at::Tensor& keys) {
    int64_t D = keys.size(1) / kPageKeys - 4;
    auto numbers = keys.narrow(1, 0, kPageKeys * D);
    values = format_of(keys) == KeyFormat::fp8 ? numbers.unflatten(1, {kPageKeys, D})
                                               : numbers.unflatten(1, {D / 4, kPageKeys, 4}).transpose(1, 2);
    scales = keys.narrow(1, kPageKeys * D, kPageKeys * 4).view(at::kFloat);
  }
  at::Tensor values, scales;
};

}  // namespace

at::Tensor empty_latents(int64_t pages, int64_t R, int64_t P, KeyFormat format, at::ScalarType type) {
  FULGUR_CHECK(format != KeyFormat::int8, "[cache] expected latents plain or fp8, got int8");
  bool plain = format == KeyFormat::plain;
  return at::empty({pages * kPageKeys, plain ? R + P : latent_bytes(R, P)}, at::TensorOptions().dtype(plain ? type : at::kByte));
}

at::Tensor empty_index_keys(int64_t pages, int64_t D, KeyFormat format, at::ScalarType type) {
  if (format == KeyFormat::plain) return at::empty({pages, D, kPageKeys}, at::TensorOptions().dtype(type));
  FULGUR_CHECK(D <= kGroup && D % 4 == 0,
               "[cache] expected index_head_dim of at most 128, a multiple of 4, for quantised keys, got ", D);
  return at::empty({pages, kPageKeys * (D + 4)}, at::TensorOptions().dtype(format == KeyFormat::fp8 ? at::kByte : at::kChar));
}

at::Tensor pack_latents(const at::Tensor& c_NR, const at::Tensor& k_rope_NP) {
  auto [bytes, scales] = quantize_rows(c_NR, ScaleRule::cache);
  return at::cat({bytes, scales.view(at::kByte), k_rope_NP.to(at::kBFloat16).contiguous().view(at::kByte)}, 1);
}

at::Tensor unpack_latents(const at::Tensor& bytes, int64_t R, int64_t P) {
  FULGUR_CHECK(bytes.dim() == 2 && bytes.size(1) == latent_bytes(R, P), "[cache] expected rows of ", latent_bytes(R, P),
               " bytes, got ", bytes.sizes());
  int64_t scale_bytes = latent_bytes(R, 0) - R;
  auto scales = bytes.narrow(1, R, scale_bytes).contiguous().view(at::kFloat);
  auto rope = bytes.narrow(1, R + scale_bytes, 2 * P).contiguous().view(at::kBFloat16);
  return at::cat({dequantize_rows(bytes.narrow(1, 0, R), scales), rope.to(at::kFloat)}, 1);
}

void store_latents(const at::Tensor& latents, const at::Tensor& slots_N, const at::Tensor& c_NR, const at::Tensor& k_rope_NP) {
  auto rows = format_of(latents) == KeyFormat::plain ? at::cat({c_NR, k_rope_NP}, 1) : pack_latents(c_NR, k_rope_NP);
  latents.index_copy_(0, slots_N, rows.detach());
}

void store_index_keys(const at::Tensor& keys, const at::Tensor& slots_N, const at::Tensor& k_in) {
  auto page_N = slots_N.floor_divide(kPageKeys), key_N = slots_N.remainder(kPageKeys);
  auto k_ND = k_in.detach();
  if (format_of(keys) == KeyFormat::plain) {
    keys.transpose(1, 2).index_put_({page_N, key_N}, k_ND);
    return;
  }
  IndexPages pages(keys);
  at::Tensor values, scales;
  if (format_of(keys) == KeyFormat::fp8) {
    std::tie(values, scales) = quantize_rows(k_ND, ScaleRule::pow2);
  } else {
    auto k = k_ND.to(at::kFloat);
    auto most = k.abs().amax(1, /*keepdim=*/true);
    scales = most / 127;
    values = (k * (127 / most.clamp_min(1e-30))).round().to(at::kInt).bitwise_xor(128).to(at::kChar).unflatten(1, {-1, 4});
  }
  pages.values.index_put_({page_N, key_N}, values);
  pages.scales.index_put_({page_N, key_N}, scales.squeeze(1));
}

void copy_index_keys(const at::Tensor& keys, int64_t from_page, int64_t to_page, int64_t count) {
  auto copy = [&](const at::Tensor& parts, int64_t dim) {
    parts.select(0, to_page).narrow(dim, 0, count).copy_(parts.select(0, from_page).narrow(dim, 0, count));
  };
  if (format_of(keys) == KeyFormat::plain) return copy(keys, 1);
  IndexPages pages(keys);
  copy(pages.values, 0), copy(pages.scales, 0);
}

}  // namespace fulgur::ops
