// GGUF files, versions 2 and 3: llama.cpp's metadata and tensors, memory-mapped. Readers trust nothing: every lie is one
// InputError line that names the file and the byte, key or tensor. Thread-safe.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "fulgur/base/file.h"
#include "fulgur/base/json.h"

namespace fulgur {

class Gguf {
 public:
  explicit Gguf(const std::filesystem::path& path);

  const std::string& name() const { return name_; }
  // Keys and values; arrays are JSON arrays.
  const Json& metadata() const { return metadata_; }
  // A value, of a kind: throws InputError where it is missing or of another.
  int64_t integer(const std::string& key) const;
  double number(const std::string& key) const;
  std::string text(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  std::vector<int32_t> integers(const std::string& key) const;
  bool has(const std::string& key) const { return metadata_.contains(key); }

  struct Entry {
    uint32_t type = 0;              // ggml's number
    std::vector<int64_t> shape;     // as in PyTorch: the last runs along memory
    uint64_t begin = 0, bytes = 0;  // in the file
  };
  const std::map<std::string, Entry>& tensors() const { return tensors_; }

  // A tensor's values in f32: F32 F16 BF16, Q4_0 Q4_1 Q8_0 Q4_K Q6_K as ggml dequantises them.
  at::Tensor read(const std::string& tensor) const;

 private:
  class Reader;
  const Json& value(const std::string& key) const;

  std::string name_;
  MappedFile file_;
  Json metadata_ = Json::object();
  std::map<std::string, Entry> tensors_;
};

}  // namespace fulgur
