// A checkpoint and what the gguf package made of it (tests/official.py tiny, gguf): the same model.
#include "fulgur/model/gguf_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/model/weights.h"

namespace fulgur {
namespace {

const std::string kGolden = FULGUR_GOLDEN "/gguf/deepseek32";

TEST(GgufModel, Deepseek32HasTheConfigAndTensorsOfTheCheckpointItWasMadeOf) {
  Gguf file(kGolden + ".gguf");
  auto config = gguf_config(file), expected = read_config(kGolden + ".json");
  EXPECT_EQ(config.eos_token_id, -1);  // the file has no tokenizer
  config.bos_token_id = expected.bos_token_id, config.eos_token_id = expected.eos_token_id;
  config.torch_dtype = expected.torch_dtype;
  EXPECT_EQ(config_json(config), config_json(expected));
  auto tensors = gguf_tensors(file, config);
  auto whole = read_safetensors(kGolden + ".safetensors");
  EXPECT_EQ(tensors.size(), whole.size());
  for (const auto& [name, tensor] : whole) {
    ASSERT_TRUE(tensors.contains(name)) << name;
    EXPECT_TRUE(at::equal(tensors.at(name), tensor.to(at::kFloat))) << name;
  }
  import_weights(config, tensors, /*share_mtp=*/false);
}

TEST(GgufModel, WhatIsMissingOrOfAnotherModelIsNamed) {
  auto whole = read_file(kGolden + ".gguf");
  auto path = std::filesystem::path(testing::TempDir()) / "changed.gguf";
  auto message = [&](const std::string& from, const std::string& to) -> std::string {
    auto changed = whole;
    changed.replace(changed.find(from), from.size(), to);
    write_file_atomic(path, changed);
    try {
      Gguf file(path);
      auto config = gguf_config(file);
      import_weights(config, gguf_tensors(file, config), /*share_mtp=*/false);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message("blk.0", "blk.0"), "");
  EXPECT_NE(message("blk.1.attn_q_a.weight", "blk.1.attn_q_x.weight").find("model.layers.1.self_attn.q_a_proj.weight"),
            std::string::npos);
  EXPECT_NE(message("attention.kv_lora_rank", "attention.kv_lora_ronk").find("attention.kv_lora_rank"), std::string::npos);
  EXPECT_NE(message("general.architecture\x08", "general.architecturf\x08").find("general.architecture"), std::string::npos);
}

}  // namespace
}  // namespace fulgur
