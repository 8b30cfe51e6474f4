// JSON Schema as a reward.
#pragma once

#include <memory>
#include <string_view>

#include "fulgur/rl/rewards/reward.h"

namespace fulgur {

// 1 when the answer is JSON that the schema allows, with nothing but white space around it, else 0; `why` names the first place
// that does not fit. Draft 2020-12: any order of keys and any spelling, where text/schema.h's grammar writes one of each.
// Understood: type, enum, const, properties, required, additionalProperties, patternProperties, propertyNames, minProperties,
// maxProperties, dependentRequired, items, prefixItems, contains, minContains, maxContains, minItems, maxItems, uniqueItems,
// minLength, maxLength, pattern, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf, allOf, anyOf, oneOf, not, if,
// then, else, $ref into the schema itself; format date, time, date-time, uuid, email and ipv4, which must hold; annotations,
// which say nothing. Patterns are regex_match.h's. Of equal keys the last counts. Integers beyond 64 bits are read as doubles.
// Copies share the schema. Thread-safe.
class SchemaMatch {
 public:
  // Throws InputError that names the place: another keyword, a value it cannot have, a reference to nothing, a bad pattern.
  explicit SchemaMatch(Json schema);
  // Invalid where a pattern reaches its match limit, or references go round without an end.
  Outcome operator()(std::string_view answer) const;

 private:
  struct Schema;
  std::shared_ptr<const Schema> schema_;
};

}  // namespace fulgur
