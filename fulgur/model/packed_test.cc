// Packed weights in a file: the same bits come back, mapped; what does not fit is named. Experts are paged by what layers choose.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "fulgur/base/error.h"
#include "fulgur/base/system_memory.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/expert_pager.h"
#include "fulgur/model/transformer.h"

namespace fulgur {
namespace {

// Every kind of layer; some matrices cannot be packed, or not in every format.
ModelConfig small_config() {
  ModelConfig c;
  c.vocab_size = 96, c.hidden_size = 64, c.intermediate_size = 96, c.moe_intermediate_size = 40;
  c.num_hidden_layers = 3, c.first_k_dense_replace = 1, c.num_nextn_predict_layers = 1, c.num_attention_heads = 2;
  c.q_lora_rank = 48, c.kv_lora_rank = 32, c.qk_nope_head_dim = 16, c.qk_rope_head_dim = 8, c.v_head_dim = 16;
  c.n_routed_experts = 8, c.n_shared_experts = 1, c.num_experts_per_tok = 2, c.n_group = 2, c.topk_group = 1;
  c.index_n_heads = 3, c.index_head_dim = 16, c.index_topk = 5, c.max_position_embeddings = 64, c.initializer_range = 0.2;
  validate(c, "small");
  return c;
}

ModelConfig small_llama() {
  ModelConfig c;
  c.model_type = "llama", c.tie_word_embeddings = true;
  c.vocab_size = 96, c.hidden_size = 64, c.intermediate_size = 96, c.num_hidden_layers = c.first_k_dense_replace = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 16;
  c.max_position_embeddings = 64, c.initializer_range = 0.2;
  validate(c, "llama");
  return c;
}

Weights packed(const ModelConfig& config, const Packing& packing) {
  return pack_weights(config, init_weights(config, 3), packing.type, packing.absorbed, packing.format);
}

struct File {
  std::filesystem::path path = std::filesystem::temp_directory_path() / cat("fulgur-packed-", getpid(), ".safetensors");
  ~File() { std::filesystem::remove(path); }
};

TEST(Packed, EveryFormatComesBackFromAMappedFileEqual) {
  File file;
  for (const auto& config : {small_config(), small_llama()})
    for (auto type : {at::kFloat, at::kBFloat16})
      for (bool absorbed : {true, false})
        for (auto format : {WeightFormat::plain, WeightFormat::fp8, WeightFormat::int8, WeightFormat::int4}) {
          if (absorbed && !config.has_indexer()) continue;
          Packing packing{type, absorbed, format};
          Weights weights = packed(config, packing);
          auto tensors = export_packed(weights);
          write_safetensors(file.path, tensors);
          auto mapped = map_safetensors(file.path);
          Weights back = import_packed(config, packing, mapped);
          EXPECT_EQ(back.packing, packing);
          auto again = export_packed(back);
          ASSERT_EQ(again.size(), tensors.size());
          for (auto& [name, tensor] : tensors) {
            EXPECT_TRUE(at::equal(again.at(name).view(at::kByte), tensor.view(at::kByte))) << name;
            EXPECT_EQ(again.at(name).const_data_ptr(), mapped.at(name).const_data_ptr()) << name;  // no copy
          }
        }
}

TEST(Packed, WhatDoesNotFitIsNamed) {
  auto config = small_config();
  Packing packing{at::kBFloat16, true, WeightFormat::int8};
  Weights weights = packed(config, packing);
  const auto whole = export_packed(weights);
  const std::string name = "model.layers.1.self_attn.k_up_proj.weight";
  auto message = [&](auto change, const Packing& as) -> std::string {
    auto tensors = whole;
    change(tensors);
    try {
      import_packed(config, as, tensors);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message([](auto&) {}, packing), "");
  EXPECT_NE(message([&](auto& t) { t.erase(name); }, packing).find(name), std::string::npos);
  EXPECT_NE(message([&](auto& t) { t.at(name) = t.at(name).narrow(0, 0, 1); }, packing).find(name), std::string::npos);
  EXPECT_NE(message([&](auto& t) { t.at(name) = t.at(name).view(at::kByte); }, packing).find(name), std::string::npos);
  EXPECT_NE(message([&](auto& t) { t["more"] = at::zeros({1}); }, packing).find("packed tensors"), std::string::npos);
  EXPECT_NE(message([](auto&) {}, {at::kFloat, true, WeightFormat::int8}), "");
  EXPECT_THROW(pack_weights(config, weights, at::kFloat, true, WeightFormat::int8), InputError);
  EXPECT_EQ(pack_weights(config, weights, at::kBFloat16, true, WeightFormat::int8).lm_head.const_data_ptr(),
            weights.lm_head.const_data_ptr());
}

TEST(Packed, PagingExpertsChangesNothingAndCountsThem) {
  File file;
  auto config = small_config();
  Packing packing{at::kFloat, true, WeightFormat::plain};
  Weights weights = packed(config, packing);
  write_safetensors(file.path, export_packed(weights));
  Transformer plain(config, weights), paged(config, import_packed(config, packing, map_safetensors(file.path)));
  paged.page_experts();
  auto tokens = at::arange(12, at::kInt);
  auto batch = pack_documents(tokens, {12});
  EXPECT_TRUE(at::equal(plain.forward(batch, {}), paged.forward(batch, {})));
  EXPECT_EQ(plain.pager(), nullptr);
  auto counted = paged.pager()->statistics();
  EXPECT_GE(counted.needed, 2 * 2);  // two layers, at least two experts each
  EXPECT_LE(counted.needed, 2 * 8);
  EXPECT_EQ(counted.present, counted.needed);  // just written
  EXPECT_GT(counted.foreseen, 0);
  EXPECT_LE(counted.foreseen, counted.needed);
}

TEST(Packed, TheSystemSaysHowMuchMemoryThereIs) {
  EXPECT_GT(available_memory(), int64_t(1) << 26);
  EXPECT_LT(available_memory(), int64_t(1) << 50);
  EXPECT_GE(disk_bytes_read(), 0);
}

}  // namespace
}  // namespace fulgur
