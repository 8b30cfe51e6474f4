// JSON with key order kept. Reading throws InputError that names the file and the byte.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace fulgur {

using Json = nlohmann::ordered_json;

// `name` stands in the error message: a path, or what the text is. At most 256 brackets inside each other: destroying,
// copying and printing JSON recurse. `watch` is nlohmann's callback, which sees every value and key.
Json parse_json(std::string_view text, const std::string& name, const Json::parser_callback_t& watch = nullptr);
Json read_json(const std::filesystem::path& path);

}  // namespace fulgur
