#include "fulgur/base/json.h"

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/sorted_json.h"

namespace fulgur {

namespace {

// Exact up to the text's first fault, behind which the parser does not go.
void check_depth(std::string_view text, const std::string& name) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (quoted && c == '\\') ++i;
    else if (c == '"') quoted = !quoted;
    else if (!quoted && (c == '[' || c == '{')) ++depth;
    else if (!quoted && (c == ']' || c == '}')) --depth;
    FULGUR_CHECK(depth <= kDeepestJson, "[json] ", name, ": expected at most ", kDeepestJson,
                 " brackets inside each other, got more at byte ", i);
  }
}

template <class AnyJson>
AnyJson parse(std::string_view text, const std::string& name, const typename AnyJson::parser_callback_t& watch) {
  check_depth(text, name);
  try {
    return AnyJson::parse(text, watch);
  } catch (const Json::parse_error& error) {
    throw InputError(cat("[json] ", name, ": expected JSON, got an error at byte ", error.byte, ": ", error.what()));
  } catch (const Json::exception& error) {  // 1e999
    throw InputError(cat("[json] ", name, ": expected numbers that fit, got an error: ", error.what()));
  }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& name, const Json::parser_callback_t& watch) {
  return parse<Json>(text, name, watch);
}

Json read_json(const std::filesystem::path& path) { return parse_json(read_file(path), path.string()); }

SortedJson read_sorted_json(const std::filesystem::path& path) {
  return parse<SortedJson>(read_file(path), path.string(), nullptr);
}

}  // namespace fulgur
