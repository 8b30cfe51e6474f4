// Inputs: what `data pack` is given. The same bytes are read as JSON Lines, HTML and text, and as gzip where they say so.
#include "fulgur/train/data/documents.h"

#include "fulgur/base/utf8.h"
#include "fulgur/text/tokenizer.h"
#include "tests/fuzz/fuzz.h"

using namespace fulgur;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto bytes = fuzz::view(data, size);
  auto read = [&](const char* name) {
    auto path = fuzz::put(name, bytes);
    fuzz::accepts([&] {
      for_each_document(path, [](const Document& document) {
        fuzz::promise(valid_utf8(document.text) == document.text, "a document is valid UTF-8");
      });
    });
  };
  if (bytes.substr(0, 2) == "\x1f\x8b") return read("in.html.gz"), 0;
  for (const char* name : {"in.jsonl", "in.html", "in.txt"}) read(name);
  return 0;
}
