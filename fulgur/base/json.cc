#include "fulgur/base/json.h"

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"

namespace fulgur {

Json parse_json(std::string_view text, const std::string& name) {
  try {
    return Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw InputError(cat("[json] ", name, ": expected JSON, got an error at byte ", error.byte, ": ", error.what()));
  }
}

Json read_json(const std::filesystem::path& path) { return parse_json(read_file(path), path.string()); }

}  // namespace fulgur
