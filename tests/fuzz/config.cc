// Inputs: a model's config.json.
#include "fulgur/model/config.h"

#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ModelConfig config;
  if (!fuzz::accepts([&] { config = read_config(fuzz::put("config.json", fuzz::view(data, size))); })) return 0;
  Json written = config_json(config);
  Json again = config_json(parse_config(parse_json(written.dump(), "written"), "written"));
  fuzz::promise(again == written, "a config written is the config read");
  return 0;
}
