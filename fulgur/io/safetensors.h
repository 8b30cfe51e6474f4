// Safetensors files: an 8-byte header length, a JSON header of names, types, shapes and offsets, then the bytes.
// Readers trust nothing: every lie is one InputError line that names the file. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "fulgur/base/file.h"

namespace fulgur {

using Tensors = std::map<std::string, at::Tensor>;

// A file's tensors where they lie in it, memory-mapped and not to be written to; a tensor keeps the map.
Tensors map_safetensors(const std::filesystem::path& path);

// All tensors of one file, copied out of it. F64 F32 F16 BF16 F8_E4M3 I64 I32 I16 I8 U8 BOOL.
Tensors read_safetensors(const std::filesystem::path& path);

// A model's weights: a .safetensors file, or a folder with model.safetensors or model.safetensors.index.json and its
// shards.
Tensors read_weights(const std::filesystem::path& path);

// Atomic; the bytes depend on the tensors alone. Data begins at a multiple of 64 bytes, and tensors of such multiples come first,
// so that a map of the file has each of them at one.
FileSum write_safetensors(const std::filesystem::path& path, const Tensors& tensors,
                          const std::map<std::string, std::string>& metadata = {});

// model.safetensors, or model-0000i-of-0000n.safetensors with an index when there are more than `shard_bytes`. The sum of
// every file, by name.
std::map<std::string, FileSum> write_weights(const std::filesystem::path& folder, const Tensors& tensors,
                                             int64_t shard_bytes = int64_t(5) << 30);

}  // namespace fulgur
