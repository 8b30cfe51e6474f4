// What every target shares. A reader may take bytes or throw InputError. Any other exception stays uncaught, so that the
// report shows the stack that threw it.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "fulgur/base/error.h"
#include "fulgur/base/json.h"

namespace fulgur::fuzz {

// A folder of this process alone, in $TMPDIR: run.sh gives one in memory, and removes it.
inline const std::filesystem::path& folder() {
  static const auto made = [] {
    auto path = std::filesystem::temp_directory_path() / ("fulgur-fuzz." + std::to_string(::getpid()));
    std::filesystem::create_directories(path);
    return path;
  }();
  return made;
}

// A file of these bytes in the folder. Its name stays the same, so that error texts do.
inline std::filesystem::path put(const std::string& name, std::string_view bytes) {
  auto path = folder() / name;
  std::filesystem::create_directories(path.parent_path());
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), std::streamsize(bytes.size()));
  out.close();
  if (!out) std::perror(path.c_str()), std::abort();
  return path;
}

// JSON that a target changes before a reader sees it; discarded (no object) where it is none.
inline Json parse_or_discard(std::string_view bytes) {
  try {
    return parse_json(bytes, "input");
  } catch (const InputError&) {
    return Json::value_t::discarded;
  }
}

inline std::string_view view(const uint8_t* data, size_t size) { return {reinterpret_cast<const char*>(data), size}; }

// What holds for every input; ends the process where it does not.
inline void promise(bool kept, const char* text) {
  if (kept) return;
  std::fprintf(stderr, "broken promise: %s\n", text);
  std::abort();
}

// Whether the reader took the bytes.
template <class Read>
bool accepts(const Read& read) {
  try {
    read();
    return true;
  } catch (const InputError& error) {
    promise(error.what()[0] == '[', "an error names its area");
    return false;
  }
}

}  // namespace fulgur::fuzz
