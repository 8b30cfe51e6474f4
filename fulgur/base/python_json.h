// JSON as Python's json module reads and prints it, which prompts are made of: integers of any size, NaN and Infinity, the last
// of equal keys in the place of the first; ", " and ": " between, other characters than controls as they are, floats as repr
// gives them.
#pragma once

#include <string>
#include <string_view>

#include "fulgur/base/json.h"

namespace fulgur {

// As json.loads. An integer beyond 64 bits is kept as its digits, in a value of nlohmann's kind "binary". Throws InputError that
// names `name` and the byte: no JSON, something behind it, invalid UTF-8, half a surrogate pair, more than 256 brackets inside
// each other.
Json parse_python_json(std::string_view text, const std::string& name);

// As json.dumps(value, ensure_ascii=False).
std::string dump_python_json(const Json& value);

// A string's characters between its quotes, as json.dumps escapes them: of parts, the parts of the whole.
std::string escape_python_json(std::string_view text);

}  // namespace fulgur
