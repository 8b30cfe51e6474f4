// Inputs: a GGUF file.
#include "fulgur/io/gguf.h"

#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto path = fuzz::put("model.gguf", fuzz::view(data, size));
  fuzz::accepts([&] {
    Gguf file(path);
    for (const auto& [name, entry] : file.tensors()) {
      auto values = file.read(name);
      fuzz::promise(values.sizes().vec() == entry.shape, "a tensor has its shape");
    }
  });
  return 0;
}
