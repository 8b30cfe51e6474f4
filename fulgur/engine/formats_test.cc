// Quantised weights and caches: the engine's bits are those of one forward pass over the finished text in the same formats.
#include "fulgur/engine/testing.h"

namespace fulgur {
namespace {

class Formats : public EngineFixture {
 protected:
  Formats() { model = Transformer(formats_config(), init_weights(formats_config(), 7)); }
};

TEST_F(Formats, OfWeightsGiveTheBitsOfTheirForwardPass) {
  for (auto weights : {WeightFormat::fp8, WeightFormat::int8, WeightFormat::int4})
    for (bool bf16 : {false, true}) crowd_equals_its_forward_passes({.bf16 = bf16, .weights = weights, .draft = bf16});
  EXPECT_GT(compared, 20000);
}

TEST_F(Formats, OfTheCacheGiveTheBitsOfTheirForwardPass) {
  for (std::string cache : {"fp8", "int8", "fp8+int8"})
    for (bool bf16 : {false, true}) crowd_equals_its_forward_passes({.bf16 = bf16, .cache = cache_format(cache), .draft = !bf16});
  crowd_equals_its_forward_passes({.bf16 = true, .weights = WeightFormat::int4, .cache = cache_format("fp8+int8")});
  EXPECT_GT(compared, 20000);
}

TEST_F(Formats, ServeDenseAttentionWithPlainKeysOnly) {
  crowd_equals_its_forward_passes({.dense = true, .bf16 = true, .weights = WeightFormat::int8});
  EXPECT_THROW(Engine(model, {.dense = true, .cache = cache_format("fp8")}), InputError);
  EXPECT_THROW(cache_format("int4"), InputError);
  EXPECT_THROW(weight_format("q4"), InputError);
}

// A format that changed nothing would pass all of the above.
TEST_F(Formats, DifferFromOneAnother) {
  Request request{.prompt = std::vector<int32_t>(100, 5), .max_tokens = 1};
  std::set<float> seen;
  int64_t tried = 0;
  for (const auto& weights : kWeightFormats)
    for (const auto& cache : kCacheFormats) {
      Engine engine(model, {.weights = weight_format(weights), .cache = cache_format(cache)});
      seen.insert(complete(engine, request).tokens.at(0).log_prob);
      ++tried;
    }
  EXPECT_GT(int64_t(seen.size()), tried / 2);
}

TEST_F(Formats, TakeTheRoomTheySay) {
  auto c = formats_config();
  c.kv_lora_rank = 512, c.qk_rope_head_dim = 64, c.index_head_dim = 128;  // as published
  auto bytes = [&](const char* format) {
    return Cache(c, Attention::sparse, at::kBFloat16, 1, {.format = cache_format(format)}).bytes() / 64 / c.num_hidden_layers;
  };
  EXPECT_EQ(bytes("plain"), 1408);
  EXPECT_EQ(bytes("fp8"), 656 + 132);
  EXPECT_EQ(bytes("int8"), 1152 + 132);
  EXPECT_EQ(bytes("fp8+int8"), 656 + 132);
}

}  // namespace
}  // namespace fulgur
