// Models in GGUF files, by llama.cpp's names: an adapter to config.json's keys and Hugging Face's tensors.
#pragma once

#include <map>
#include <string>

#include "fulgur/io/gguf.h"
#include "fulgur/model/config.h"
#include "fulgur/text/vocabulary.h"

namespace fulgur {

// Architecture llama. Throws InputError that names the key: another architecture, other rotations.
ModelConfig gguf_config(const Gguf& file);
// All its tensors in f32, under Hugging Face's names (names.h); rows of q and k back in the order of rotation by halves.
std::map<std::string, at::Tensor> gguf_tensors(const Gguf& file, const ModelConfig& config);
// Its tokenizer, a byte-level one (tokenizer.ggml.model gpt2).
Vocabulary gguf_vocabulary(const Gguf& file);

}  // namespace fulgur
