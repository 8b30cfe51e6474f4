// JSON, JSON Schema and DeepSeek-V3.2's tool calls as grammars.
#pragma once

#include <map>
#include <string>
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
// in the schema's order. `specials`: the tokenizer's special tokens by text (TokenTree); a word of the format may be its token or
// written out.
Grammar tool_call_grammar(const std::vector<Json>& tools, const std::map<std::string, int32_t>& specials);

// A whole answer that parse_v32 takes: where `thinking`, reasoning and its end; content; and such a block where there are tools,
// or none.
Grammar answer_grammar(const std::vector<Json>& tools, bool thinking, const std::map<std::string, int32_t>& specials);

// A regular expression as a whole grammar (regex.h).
Grammar regex_grammar(std::string_view pattern);

}  // namespace fulgur
