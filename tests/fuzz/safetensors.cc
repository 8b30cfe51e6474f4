// Inputs: a .safetensors file; or the model.safetensors.index.json of a folder with two good shards.
#include "fulgur/io/safetensors.h"

#include <ATen/ops/empty.h>

#include <cstring>

#include "tests/fuzz/fuzz.h"

namespace fulgur::fuzz {
namespace {

bool same(const Tensors& a, const Tensors& b) {
  if (a.size() != b.size()) return false;
  for (const auto& [name, left] : a) {
    auto found = b.find(name);
    if (found == b.end()) return false;
    const auto& right = found->second;
    if (left.scalar_type() != right.scalar_type() || left.sizes() != right.sizes()) return false;
    if (left.numel() > 0 && std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) != 0) return false;
  }
  return true;
}

std::filesystem::path folder_of_two_shards() {
  static const auto made = [] {
    auto path = folder() / "model";
    std::filesystem::create_directories(path);
    for (std::string name : {"a", "b"}) {
      auto tensor = at::empty({2}, at::TensorOptions().dtype(at::kFloat));
      std::memset(tensor.mutable_data_ptr(), 0, tensor.nbytes());
      write_safetensors(path / (name + ".safetensors"), {{name, tensor}});
    }
    return path;
  }();
  return made;
}

// The most significant byte of a header's length is 0, and text has no such byte.
bool is_index(std::string_view bytes) { return bytes.size() >= 8 && bytes[7] != 0; }

}  // namespace
}  // namespace fulgur::fuzz

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto bytes = fuzz::view(data, size);
  if (fuzz::is_index(bytes)) {
    auto model = fuzz::folder_of_two_shards();
    fuzz::put("model/model.safetensors.index.json", bytes);
    fuzz::accepts([&] { fuzz::promise(read_weights(model).size() <= 2, "an index adds no tensors"); });
    return 0;
  }
  Tensors read;
  if (!fuzz::accepts([&] { read = read_weights(fuzz::put("in.safetensors", bytes)); })) return 0;
  uint64_t total = 0;
  for (const auto& [name, tensor] : read) total += tensor.nbytes();
  fuzz::promise(total <= size, "tensors hold no more than the file");
  write_safetensors(fuzz::folder() / "out.safetensors", read);
  fuzz::promise(fuzz::same(read, read_safetensors(fuzz::folder() / "out.safetensors")), "what is written is what is read");
  return 0;
}

// Three mutations of four stay in the header, and its length follows.
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  uint64_t header = 0;
  if (size >= 8) std::memcpy(&header, data, 8);
  if (seed % 4 == 0 || size < 8 || header > size - 8) return LLVMFuzzerMutate(data, size, max_size);
  std::string tail(data + 8 + header, data + size);
  header = LLVMFuzzerMutate(data + 8, header, max_size - 8 - tail.size());
  std::memcpy(data, &header, 8);
  std::memcpy(data + 8 + header, tail.data(), tail.size());
  return 8 + header + tail.size();
}
