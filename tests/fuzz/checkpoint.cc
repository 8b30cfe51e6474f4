// state.json of a checkpoint. Its checksum is put right, so that mutations get past it.
#include "fulgur/train/checkpoint_files.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string text(fuzz::view(data, size));
  Json json = fuzz::parse_or_discard(text);
  if (json.is_object()) {
    json.erase("crc32");
    FileSum sum;
    auto summed = json.dump();
    sum.add(summed.data(), summed.size());
    json["crc32"] = sum.crc32;
    text = json.dump();
  }
  fuzz::put("run/checkpoints/pretrain-00000001/model.safetensors", "weights");
  fuzz::put("run/checkpoints/pretrain-00000001/state.json", text);
  CheckpointState state;
  bool good = fuzz::accepts([&] { state = read_checkpoint(fuzz::folder() / "run/checkpoints/pretrain-00000001"); });
  fuzz::promise(!good || state.step >= 0, "steps are not negative");
  bool found = false;
  bool whole = fuzz::accepts([&] { found = newest_checkpoint(fuzz::folder() / "run", "pretrain").has_value(); });
  fuzz::promise((whole && found) == good, "the newest whole checkpoint is one that can be read");
  prune_checkpoints(fuzz::folder() / "run", "pretrain", 1, 1);
  return 0;
}
