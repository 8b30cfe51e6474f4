// JSON with key order kept. Reading throws InputError that names the file and the byte.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

namespace fulgur {

using Json = nlohmann::ordered_json;

// Brackets inside each other, at most: destroying, copying and printing JSON recurse.
inline constexpr int kDeepestJson = 256;

// `name` stands in the error message: a path, or what the text is. `watch` is nlohmann's callback, which sees every value and
// key.
Json parse_json(std::string_view text, const std::string& name, const Json::parser_callback_t& watch = nullptr);
Json read_json(const std::filesystem::path& path);

}  // namespace fulgur
