// Inputs: a token shard. The checksum in its header is put right first, or no mutation would get past it; then it is read
// as both shards of a folder.
#include "fulgur/train/data/shards.h"

#include <zlib.h>

#include <cstring>

#include "fulgur/base/threads.h"
#include "tests/fuzz/fuzz.h"

// Only pack() calls it, and OpenMP has no place here.
void fulgur::parallel_for(int64_t count, const std::function<void(int64_t)>& task) {
  for (int64_t i = 0; i < count; ++i) task(i);
}

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHeader = 72, kCrc = 52;
  std::string bytes(fuzz::view(data, size));
  if (size >= kHeader) {
    auto crc = uint32_t(crc32(0, data + kHeader, uInt(size - kHeader)));
    std::memcpy(&bytes[kCrc], &crc, 4);
  }
  fuzz::put("shards/train-00000.bin", bytes);
  fuzz::put("shards/train-00001.bin", bytes);
  fuzz::accepts([&] {
    TokenShards shards(fuzz::folder() / "shards", "train");
    int64_t half = shards.documents() / 2, tokens = 0;
    fuzz::promise(shards.documents() == 2 * half, "two equal shards have twice the documents");
    for (int64_t d = 0; d < half; ++d) {
      int64_t length = shards.length(d);
      tokens += length;
      fuzz::promise(length >= 0 && length == shards.length(half + d), "equal shards have equal documents");
      std::vector<int32_t> first(length), second(length);
      shards.read(d, 0, length, first.data());
      shards.read(half + d, 0, length, second.data());
      fuzz::promise(first == second, "equal shards have equal tokens");
    }
    fuzz::promise(shards.tokens() == 2 * tokens, "documents hold all tokens");
  });
  return 0;
}
