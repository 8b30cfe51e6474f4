// JSON with sorted keys, for objects of very many: with key order kept, each key is looked up among all before it.
#pragma once

#include "fulgur/base/json.h"

namespace fulgur {

using SortedJson = nlohmann::json;
SortedJson read_sorted_json(const std::filesystem::path& path);  // as read_json

}  // namespace fulgur
