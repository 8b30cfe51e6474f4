#include "fulgur/rl/rewards/schema_match.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/rl/rewards/regex_match.h"

namespace fulgur {
namespace {

// What a keyword's value must be.
enum class Form {
  anything,
  schema,
  schemas,
  named_schemas,
  count,
  number,
  above_zero,
  flag,
  text,
  texts,
  named_texts,
  types,
  list
};

const std::map<std::string, Form> kKeywords{{"type", Form::types},
                                            {"enum", Form::list},
                                            {"const", Form::anything},
                                            {"properties", Form::named_schemas},
                                            {"patternProperties", Form::named_schemas},
                                            {"$defs", Form::named_schemas},
                                            {"definitions", Form::named_schemas},
                                            {"additionalProperties", Form::schema},
                                            {"propertyNames", Form::schema},
                                            {"items", Form::schema},
                                            {"contains", Form::schema},
                                            {"not", Form::schema},
                                            {"if", Form::schema},
                                            {"then", Form::schema},
                                            {"else", Form::schema},
                                            {"prefixItems", Form::schemas},
                                            {"allOf", Form::schemas},
                                            {"anyOf", Form::schemas},
                                            {"oneOf", Form::schemas},
                                            {"required", Form::texts},
                                            {"dependentRequired", Form::named_texts},
                                            {"minProperties", Form::count},
                                            {"maxProperties", Form::count},
                                            {"minItems", Form::count},
                                            {"maxItems", Form::count},
                                            {"minContains", Form::count},
                                            {"maxContains", Form::count},
                                            {"minLength", Form::count},
                                            {"maxLength", Form::count},
                                            {"uniqueItems", Form::flag},
                                            {"minimum", Form::number},
                                            {"maximum", Form::number},
                                            {"exclusiveMinimum", Form::number},
                                            {"exclusiveMaximum", Form::number},
                                            {"multipleOf", Form::above_zero},
                                            {"pattern", Form::text},
                                            {"format", Form::text},
                                            {"$ref", Form::text},
                                            {"title", Form::anything},
                                            {"description", Form::anything},
                                            {"default", Form::anything},
                                            {"examples", Form::anything},
                                            {"$schema", Form::anything},
                                            {"$id", Form::anything},
                                            {"$comment", Form::anything},
                                            {"deprecated", Form::anything},
                                            {"readOnly", Form::anything},
                                            {"writeOnly", Form::anything}};

const std::string kTime = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]+)?([Zz]|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
                  kByte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])", kLabel = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?",
                  kAtom = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+";
const std::map<std::string, std::string> kFormats{
    // a date is looked up in the calendar, too
    {"date", "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
    {"time", "^" + kTime + "$"},
    {"date-time", "^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt]" + kTime + "$"},
    {"uuid", "^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$"},
    {"email", "^" + kAtom + "(\\." + kAtom + ")*@" + kLabel + "(\\." + kLabel + ")*$"},
    {"ipv4", "^" + kByte + "(\\." + kByte + "){3}$"}};

constexpr int kDeepest = 1024;  // schemas inside of schemas, references among them

// Neither fits nor does not: a limit was reached.
struct Undecided {
  std::string why;
};

[[noreturn]] void fail(const std::string& where, const std::string& expected, const Json& got) {
  throw InputError(cat("[rewards] schema ", where, ": expected ", expected, ", got ",
                       got.dump(-1, ' ', false, Json::error_handler_t::replace).substr(0, 100)));
}

bool in_calendar(const std::string& text) {
  namespace c = std::chrono;
  auto number = [&](size_t from, size_t size) { return unsigned(std::stoul(text.substr(from, size))); };
  return c::year_month_day(c::year(int(number(0, 4))), c::month(number(5, 2)), c::day(number(8, 2))).ok();
}

bool is_whole(const Json& value) {
  if (value.is_number_integer()) return true;
  return value.is_number_float() && std::trunc(value.get<double>()) == value.get<double>();
}

bool is_type(const Json& value, const std::string& type) {
  return type == "integer" ? is_whole(value) : type == value.type_name();
}

bool is_multiple(const Json& value, const Json& of) {
  if (value.is_number_integer() && of.is_number_integer()) {
    if (value.is_number_unsigned()) return value.get<uint64_t>() % of.get<uint64_t>() == 0;
    int64_t signed_value = value.get<int64_t>();  // nlohmann keeps numbers below 0 so, and all that C++ gave it as signed
    return (signed_value < 0 ? 0 - uint64_t(signed_value) : uint64_t(signed_value)) % of.get<uint64_t>() == 0;
  }
  double times = value.get<double>() / of.get<double>();
  return std::fabs(times - std::round(times)) <= 1e-9 * std::max(1.0, std::fabs(times));
}

bool is_distinct(const Json& list) {
  for (size_t i = 0; i < list.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (same_json(list[i], list[j])) return false;
  return true;
}

int64_t characters(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

}  // namespace

struct SchemaMatch::Schema {
  Json root;
  std::map<std::string, RegexMatch> patterns;
  std::set<std::string> references;  // that were followed already

  explicit Schema(Json given) : root(std::move(given)) {
    for (const auto& [name, pattern] : kFormats) patterns.try_emplace(pattern, pattern);
    check(root, "#");
  }

  // --- What a schema may be

  void check(const Json& schema, const std::string& where) {
    if (schema.is_boolean()) return;
    if (!schema.is_object()) fail(where, "a schema: an object, true or false", schema);
    for (const auto& [keyword, value] : schema.items()) {
      auto known = kKeywords.find(keyword);
      auto here = cat(where, "/", keyword);
      if (known == kKeywords.end()) fail(here, "a keyword that is understood (schema_match.h lists them)", value);
      check_form(known->second, value, here);
      if (keyword == "pattern") add_pattern(value, here);
      if (keyword == "patternProperties")
        for (const auto& [pattern, ignored] : value.items()) add_pattern(pattern, here);
      if (keyword == "format" && !kFormats.count(value)) fail(here, "date, time, date-time, uuid, email or ipv4", value);
      if (keyword == "$ref" && references.insert(value).second) check(target(value, here), value);
    }
  }

  void check_form(Form form, const Json& value, const std::string& where) {
    auto texts = [](const Json& list) {
      return list.is_array() && std::all_of(list.begin(), list.end(), [](const Json& item) { return item.is_string(); });
    };
    auto require = [&](bool holds, const char* expected) {
      if (!holds) fail(where, expected, value);
    };
    switch (form) {
      case Form::anything:
        return;
      case Form::schema:
        return check(value, where);
      case Form::schemas:
        require(value.is_array() && !value.empty(), "a list of schemas");
        for (size_t i = 0; i < value.size(); ++i) check(value[i], cat(where, "/", i));
        return;
      case Form::named_schemas:
        require(value.is_object(), "an object of schemas");
        for (const auto& [name, schema] : value.items()) check(schema, cat(where, "/", name));
        return;
      case Form::count:
        return require(is_whole(value) && value >= 0, "a whole number from 0");
      case Form::number:
        return require(value.is_number(), "a number");
      case Form::above_zero:
        return require(value.is_number() && value > 0, "a number above 0");
      case Form::flag:
        return require(value.is_boolean(), "true or false");
      case Form::text:
        return require(value.is_string(), "a string");
      case Form::texts:
        return require(texts(value), "a list of strings");
      case Form::named_texts:
        require(value.is_object() && std::all_of(value.begin(), value.end(), texts), "an object of lists of strings");
        return;
      case Form::types:
        return require_types(value, where);
      case Form::list:
        return require(value.is_array(), "a list");
    }
  }

  static void require_types(const Json& value, const std::string& where) {
    static const std::set<std::string> kTypes{"string", "number", "integer", "boolean", "null", "object", "array"};
    for (const auto& type : value.is_array() ? value : Json::array({value}))
      if (!type.is_string() || !kTypes.count(type)) fail(where, "a type of JSON or a list of them", value);
  }

  void add_pattern(const std::string& pattern, const std::string& where) {
    try {
      patterns.try_emplace(pattern, pattern);
    } catch (const InputError& error) {
      fail(where, "a regular expression", error.what());
    }
  }

  const Json& target(const std::string& reference, const std::string& where) const {
    if (reference.empty() || reference[0] != '#') fail(where, "a reference into this schema, such as #/$defs/name", reference);
    try {
      return root.at(Json::json_pointer(reference.substr(1)));
    } catch (const Json::exception&) {
      fail(where, "a reference to what is there", reference);
    }
  }

  // --- Whether a value fits: what does not, and where; empty when all does

  std::string fault(const Json& schema, const Json& value, const std::string& where, int depth = 0) const {
    if (depth > kDeepest) throw Undecided{"references: the schema's go round without an end"};
    if (schema == false) return cat(where, ": nothing may be here");
    if (schema == true) return "";
    for (const auto& [keyword, of] : schema.items())
      if (auto out = fault_of(keyword, of, schema, value, where, depth + 1); !out.empty()) return out;
    return "";
  }

  bool fits(const Json& schema, const Json& value, int depth) const { return fault(schema, value, "", depth).empty(); }
  int64_t count_fitting(const Json& schemas, const Json& value, int depth) const {
    return std::count_if(schemas.begin(), schemas.end(), [&](const Json& schema) { return fits(schema, value, depth); });
  }

  std::string fault_of(const std::string& keyword, const Json& of, const Json& schema, const Json& value,
                       const std::string& where, int depth) const {
    if (keyword == "$ref") return fault(target(of, where), value, where, depth);
    if (keyword == "allOf") {
      for (const auto& each : of)
        if (auto out = fault(each, value, where, depth); !out.empty()) return out;
      return "";
    }
    if (keyword == "if") {
      const char* then = fits(of, value, depth) ? "then" : "else";
      return schema.contains(then) ? fault(schema[then], value, where, depth) : "";
    }
    if (value.is_object()) {
      if (auto out = fault_of_members(keyword, of, schema, value, where, depth); !out.empty()) return out;
    }
    if (value.is_array() && (keyword == "prefixItems" || keyword == "items"))
      return fault_of_items(keyword, of, schema, value, where, depth);
    bool holds = value.is_number()   ? number_holds(keyword, of, value)
                 : value.is_string() ? string_holds(keyword, of, value)
                 : value.is_array()  ? array_holds(keyword, of, schema, value, depth)
                 : value.is_object() ? object_holds(keyword, of, value, depth)
                                     : true;
    return holds && any_holds(keyword, of, value, depth) ? "" : cat(where.empty() ? "the answer" : where, ": ", keyword);
  }

  std::string fault_of_members(const std::string& keyword, const Json& of, const Json& schema, const Json& value,
                               const std::string& where, int depth) const {
    for (const auto& [name, member] : value.items()) {
      auto here = cat(where, "/", name);
      std::string out;
      if (keyword == "properties" && of.contains(name)) out = fault(of[name], member, here, depth);
      if (keyword == "additionalProperties" && is_additional(schema, name)) out = fault(of, member, here, depth);
      if (keyword == "patternProperties")
        for (const auto& [pattern, each] : of.items())
          if (out.empty() && matches(pattern, name)) out = fault(each, member, here, depth);
      if (!out.empty()) return out;
    }
    return "";
  }

  bool is_additional(const Json& schema, const std::string& name) const {
    if (schema.contains("properties") && schema["properties"].contains(name)) return false;
    if (!schema.contains("patternProperties")) return true;
    for (const auto& [pattern, ignored] : schema["patternProperties"].items())
      if (matches(pattern, name)) return false;
    return true;
  }

  std::string fault_of_items(const std::string& keyword, const Json& of, const Json& schema, const Json& value,
                             const std::string& where, int depth) const {
    size_t named = schema.contains("prefixItems") ? schema["prefixItems"].size() : 0;
    bool prefix = keyword == "prefixItems";
    for (size_t i = prefix ? 0 : named; i < (prefix ? std::min(named, value.size()) : value.size()); ++i)
      if (auto out = fault(prefix ? of[i] : of, value[i], cat(where, "/", i), depth); !out.empty()) return out;
    return "";
  }

  bool any_holds(const std::string& keyword, const Json& of, const Json& value, int depth) const {
    if (keyword == "type") {
      if (of.is_string()) return is_type(value, of);
      return std::any_of(of.begin(), of.end(), [&](const Json& type) { return is_type(value, type); });
    }
    if (keyword == "const") return same_json(value, of);
    if (keyword == "enum") return std::any_of(of.begin(), of.end(), [&](const Json& each) { return same_json(value, each); });
    if (keyword == "anyOf") return count_fitting(of, value, depth) > 0;
    if (keyword == "oneOf") return count_fitting(of, value, depth) == 1;
    if (keyword == "not") return !fits(of, value, depth);
    return true;
  }

  static bool number_holds(const std::string& keyword, const Json& of, const Json& value) {
    if (keyword == "minimum") return value >= of;
    if (keyword == "maximum") return value <= of;
    if (keyword == "exclusiveMinimum") return value > of;
    if (keyword == "exclusiveMaximum") return value < of;
    return keyword != "multipleOf" || is_multiple(value, of);
  }

  bool string_holds(const std::string& keyword, const Json& of, const std::string& value) const {
    if (keyword == "minLength") return of <= characters(value);
    if (keyword == "maxLength") return of >= characters(value);
    if (keyword == "pattern") return matches(of, value);
    if (keyword != "format") return true;
    return matches(kFormats.at(of), value) && (!of.get<std::string>().starts_with("date") || in_calendar(value));
  }

  bool array_holds(const std::string& keyword, const Json& of, const Json& schema, const Json& value, int depth) const {
    if (keyword == "minItems") return of <= value.size();
    if (keyword == "maxItems") return of >= value.size();
    if (keyword == "uniqueItems") return of == false || is_distinct(value);
    if (keyword != "contains") return true;
    int64_t found = std::count_if(value.begin(), value.end(), [&](const Json& item) { return fits(of, item, depth); });
    return found >= schema.value("minContains", 1) && (!schema.contains("maxContains") || schema["maxContains"] >= found);
  }

  bool object_holds(const std::string& keyword, const Json& of, const Json& value, int depth) const {
    auto has = [&](const Json& name) { return value.contains(name.get<std::string>()); };
    if (keyword == "required") return std::all_of(of.begin(), of.end(), has);
    if (keyword == "minProperties") return of <= value.size();
    if (keyword == "maxProperties") return of >= value.size();
    if (keyword == "dependentRequired")
      for (const auto& [name, needed] : of.items())
        if (value.contains(name) && !std::all_of(needed.begin(), needed.end(), has)) return false;
    if (keyword == "propertyNames")
      for (const auto& [name, ignored] : value.items())
        if (!fits(of, name, depth)) return false;
    return true;
  }

  bool matches(const std::string& pattern, const std::string& text) const {
    auto outcome = patterns.at(pattern)(text);
    if (!outcome.score) throw Undecided{outcome.why};
    return *outcome.score == 1;
  }
};

SchemaMatch::SchemaMatch(Json schema) : schema_(std::make_shared<const Schema>(std::move(schema))) {}

Outcome SchemaMatch::operator()(std::string_view answer) const {
  Json value;
  try {
    value = parse_json(answer, "the answer");
  } catch (const InputError& error) {
    return {0, error.what()};
  }
  try {
    auto fault = schema_->fault(schema_->root, value, "");
    return {fault.empty() ? 1 : 0, fault.empty() ? "fits the schema" : std::move(fault)};
  } catch (const Undecided& undecided) {
    return invalid_outcome(undecided.why);
  }
}

}  // namespace fulgur
