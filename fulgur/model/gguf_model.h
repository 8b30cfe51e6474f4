// Models in GGUF files, by llama.cpp's names: an adapter to config.json's keys and Hugging Face's tensors.
#pragma once

#include <map>
#include <string>

#include "fulgur/io/gguf.h"
#include "fulgur/model/config.h"
#include "fulgur/text/vocabulary.h"

namespace fulgur {

// Architectures llama, deepseek2 (V3's gating by sigmoid) and deepseek32. Throws InputError that names the key: another
// architecture, other rotations, other gating.
ModelConfig gguf_config(const Gguf& file);
// All its tensors in f32, under Hugging Face's names (names.h); rows of llama's q and k back in the order of rotation by halves,
// experts apart, kv_b_proj whole where the file has it by head.
std::map<std::string, at::Tensor> gguf_tensors(const Gguf& file, const ModelConfig& config);
// Its tokenizer, a byte-level one (tokenizer.ggml.model gpt2).
Vocabulary gguf_vocabulary(const Gguf& file);

}  // namespace fulgur
