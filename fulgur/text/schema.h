// JSON, JSON Schema and DeepSeek-V3.2's tool calls as grammars.
#pragma once

#include <vector>

#include "fulgur/base/json.h"
#include "fulgur/text/grammar.h"

namespace fulgur {

// Any JSON value; with `object`, any JSON object.
Grammar json_grammar(bool object = false);

// JSON that a schema (draft 2020-12) allows. Understood: type (also a list), properties, required, additionalProperties, items,
// prefixItems, minItems, maxItems, enum, const, anyOf, oneOf (read as anyOf where the choices differ by a const, an enum or their
// type), allOf of one, $ref into the schema itself ("#", "#/$defs/..."), minLength, maxLength, pattern, format date, time,
// date-time, uuid, email and ipv4, minimum, maximum and their exclusive forms of integers; annotations (title, description,
// default, examples) say nothing. Properties come in the schema's order; others only where additionalProperties allows them
// expressly. Anything else throws InputError that names its place.
Grammar schema_grammar(const Json& schema);

// The answer's part behind its content: a block of one call or more of these tools (each the "function" of OpenAI's form), up
// to the end of the block. Strings stand as they are, all else is JSON of the parameter's schema; required parameters come first
// in the schema's order. `marker_is_special`: the tokenizer has a special token of DSML's marker.
Grammar tool_call_grammar(const std::vector<Json>& tools, bool marker_is_special);

// A regular expression as a whole grammar (regex.h).
Grammar regex_grammar(std::string_view pattern);

}  // namespace fulgur
