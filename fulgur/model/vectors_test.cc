// Kernel-level vectors made by other people's software: tests/golden/model/README.md, "Vectors".
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fulgur/io/safetensors.h"
#include "fulgur/model/rope_table.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/indexer/indexer.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/quantize/quantize.h"
#include "fulgur/ops/rope/rope.h"
#include "fulgur/ops/router/router.h"

namespace fulgur {
namespace {

Tensors vectors(const std::string& name) { return read_safetensors(FULGUR_GOLDEN "/model/vectors/" + name + ".safetensors"); }

double relative(const at::Tensor& got, const at::Tensor& expected) {
  EXPECT_EQ(got.sizes(), expected.sizes());
  return ((got.to(at::kDouble) - expected.to(at::kDouble)).abs().max() / expected.abs().max()).item<double>();
}

// Equal values, NaN equal to NaN.
bool same(const at::Tensor& a, const at::Tensor& b) { return at::allclose(a, b, 0, 0, /*equal_nan=*/true); }

TEST(Fp8Vectors, CastAndDecodeAreThoseOfOthersByteForByte) {
  auto v = vectors("fp8");
  EXPECT_TRUE(at::equal(ops::to_e4m3(v.at("cast.in")), v.at("cast.bytes")));
  EXPECT_TRUE(same(ops::from_e4m3(at::arange(256, at::kByte)), v.at("decode.values")));
}

TEST(Fp8Vectors, ScalesBytesAndValuesOfActivationsAndWeightsAreThoseOfOthers) {
  auto v = vectors("fp8");
  for (auto [name, rule] : {std::pair("pow2", ops::ScaleRule::pow2), std::pair("plain", ops::ScaleRule::plain)}) {
    std::string act = std::string("act.") + name;
    auto [bytes, scales] = ops::quantize_rows(v.at("act.in"), rule);
    EXPECT_TRUE(at::equal(bytes, v.at(act + ".bytes"))) << name;
    EXPECT_TRUE(at::equal(scales, v.at(act + ".scale"))) << name;
    EXPECT_TRUE(at::equal(ops::dequantize_rows(bytes, scales), v.at(act + ".dequant"))) << name;
  }
  auto amax = v.at("exponent.amax").unsqueeze(1);
  auto scales = std::get<1>(ops::quantize_rows(amax, ops::ScaleRule::pow2)).squeeze(1);
  EXPECT_TRUE(at::equal(scales.log2().to(at::kInt), v.at("exponent.e")));
  EXPECT_TRUE(at::equal(ops::dequantize_blocks(v.at("weight.bytes"), v.at("weight.scale_inv")), v.at("weight.dequant")));
}

TEST(Fp8Vectors, CacheRowsAreThoseOfOthersByteForByte) {
  auto v = vectors("kv_cache");
  EXPECT_TRUE(at::equal(ops::pack_latents(v.at("latent"), v.at("rope")), v.at("scale_floor.entries")));
  for (std::string rule : {"amax_floor", "scale_floor", "plain"}) {
    auto row = ops::unpack_latents(v.at(rule + ".entries"), 512, 64);
    EXPECT_TRUE(at::equal(row.narrow(1, 0, 512), v.at(rule + ".dequant_f32"))) << rule;
    EXPECT_TRUE(at::equal(row.narrow(1, 512, 64), v.at("rope"))) << rule;
  }
}

TEST(Fp8Vectors, ProductsOfQuantisedOperandsAreTheExactSums) {
  auto v = vectors("fp8");
  auto a = ops::dequantize_rows(v.at("gemm.a_bytes"), v.at("gemm.a_scale"));
  auto w = ops::dequantize_blocks(v.at("weight.bytes"), v.at("weight.scale_inv"));
  EXPECT_LE(relative(ops::linear(a, w), v.at("gemm.out")), 2e-5);
}

TEST(HadamardVectors, RotationIsThatOfOthers) {
  auto v = vectors("hadamard");
  for (std::string n : {"32", "64", "128"}) EXPECT_LE(relative(ops::hadamard(v.at("in." + n)), v.at("out." + n)), 2e-5) << n;
}

TEST(TopKVectors, TiesZerosInfinitiesAndShortRowsSelectTheSameKeys) {
  auto v = vectors("topk");
  auto selected = v.at("selected");
  EXPECT_TRUE(at::equal(ops::top_k(v.at("scores"), v.at("length"), selected.size(1)), selected));
}

TEST(RouterVectors, ExpertsAndWeightsAreThoseOfOthers) {
  auto v = vectors("router");
  const int* p = v.at("params").const_data_ptr<int>();
  ops::RouterShape shape{p[1], p[2], p[3]};
  double scale = v.at("scaling").item<float>();
  auto zero_bias = at::zeros_like(v.at("bias"));
  for (auto [prefix, bias] : {std::pair<std::string, at::Tensor>("", v.at("bias")), {"zero.", zero_bias}, {"tie.", zero_bias}}) {
    auto logits = v.at(prefix + "logits");
    auto ids = ops::route(logits, bias, shape);
    EXPECT_TRUE(at::equal(ids, v.at(prefix + "experts"))) << prefix;
    EXPECT_LE(relative(ops::route_weights(logits, ids, true, scale), v.at(prefix + "weights")), 2e-5) << prefix;
  }
}

TEST(RopeVectors, FrequenciesScaleAndBothPairingsAreThoseOfOthers) {
  auto v = vectors("rope");
  for (bool yarn : {false, true}) {
    std::string name = yarn ? "yarn." : "plain.";
    ModelConfig config;
    config.qk_rope_head_dim = 64, config.qk_nope_head_dim = 128;
    if (yarn) config.rope_scaling = RopeScaling{.factor = 40};
    auto frequencies = rope_frequencies(config);
    EXPECT_LE(relative(at::tensor(frequencies), v.at(name + "inv_freq")), 1e-6);
    EXPECT_NEAR(softmax_scale(config) / v.at(name + "softmax_scale").item<float>(), 1, 1e-6);
    auto rotation = ops::rotation(v.at("positions"), frequencies);
    for (auto [pairing, suffix] :
         {std::pair(ops::Pairing::adjacent, "adjacent"), std::pair(ops::Pairing::halves, "half_split")}) {
      auto got = ops::rope(v.at("in").unsqueeze(1), rotation, 0, pairing).squeeze(1);
      EXPECT_LE(relative(got, v.at(name + suffix)), 2e-5) << name << suffix;
    }
  }
}

}  // namespace
}  // namespace fulgur
