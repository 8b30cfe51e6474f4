#include "fulgur/text/schema.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/text/json_values.h"
#include "fulgur/text/regex.h"
#include "fulgur/text/v32_format.h"

namespace fulgur {
namespace {

// Keywords that say nothing about what fits.
const std::set<std::string> kAnnotations{"title",    "description", "default",     "examples",   "$schema",  "$id",
                                         "$comment", "$defs",       "definitions", "deprecated", "readOnly", "writeOnly"};

[[noreturn]] void fail(const std::string& where, const std::string& expected, const Json& got) {
  throw InputError(cat("[schema] ", where, ": expected ", expected, ", got ", dump_python_json(got).substr(0, 100)));
}

// The types a schema names, or that its keywords are about; none: any.
std::vector<std::string> types_of(const Json& schema, const std::string& where) {
  static const std::set<std::string> kTypes{"string", "number", "integer", "boolean", "null", "object", "array"};
  std::vector<std::string> out;
  if (schema.contains("type")) {
    Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
    for (const auto& type : types) {
      if (!type.is_string() || !kTypes.count(type)) fail(where + ".type", "a type of JSON", schema["type"]);
      out.push_back(type);
    }
    return out;
  }
  auto has = [&](std::initializer_list<const char*> keywords) {
    return std::any_of(keywords.begin(), keywords.end(), [&](const char* keyword) { return schema.contains(keyword); });
  };
  if (has({"properties", "required", "additionalProperties"})) out.push_back("object");
  if (has({"items", "prefixItems", "minItems", "maxItems"})) out.push_back("array");
  if (has({"minLength", "maxLength", "pattern", "format"})) out.push_back("string");
  if (has({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})) out.push_back("number");
  return out;
}

bool is_type(const Json& value, const std::string& type) {
  if (type == "integer") return value.is_number_integer() || value.is_binary();
  if (type == "number") return value.is_number() || value.is_binary();
  return type == (value.is_binary() ? "number" : value.type_name());
}

class Compiler {
 public:
  Compiler(GrammarBuilder& builder, const JsonValues& json, const Json& root) : builder_(builder), json_(json), root_(root) {}

  // The rule of a schema's values.
  int32_t rule_of(const Json& schema, const std::string& where) {
    if (schema == true || (schema.is_object() && without_annotations(schema).empty())) return json_.value;
    if (!schema.is_object()) fail(where, "a schema that something fits", schema);
    if (schema.contains("$ref")) return referred(schema, where);
    return builder_.define(value(schema, where));
  }

  // The schema itself, or where its references lead.
  const Json& resolved(const Json& schema, const std::string& where) const {
    const Json* at = &schema;
    for (int i = 0; at->is_object() && at->contains("$ref"); ++i) {
      if (i > 50) fail(where, "references that lead somewhere", schema);
      at = &target((*at)["$ref"], where);
    }
    return *at;
  }

  // A string's characters, made by `character`.
  Expr characters(const Json& schema, const std::string& where, Expr (*character)(const CodePoints&)) {
    if (schema.contains("pattern") || schema.contains("format")) {
      allow(schema, where, {"type", "pattern", "format"});
      if (schema.contains("format") && schema.contains("pattern")) fail(where, "a pattern or a format", schema);
      return regex(schema.contains("pattern") ? text(schema["pattern"], where + ".pattern") : format(schema["format"], where),
                   character);
    }
    allow(schema, where, {"type", "minLength", "maxLength"});
    return repeat(character({{0, 0x10ffff}}), bound(schema, "minLength", 0, where), bound(schema, "maxLength", -1, where));
  }

  void allow(const Json& schema, const std::string& where, const std::vector<std::string>& keywords) const {
    for (const auto& [keyword, value] : schema.items())
      if (!kAnnotations.count(keyword) && std::find(keywords.begin(), keywords.end(), keyword) == keywords.end())
        fail(cat(where, ".", keyword), "a keyword that is understood here", value);
  }

  struct Property {
    std::string name;
    Json schema;
    bool required;
  };
  std::vector<Property> properties(const Json& schema, const std::string& where) const {
    std::vector<Property> out;
    std::vector<std::string> required;
    for (const auto& name : schema.value("required", Json::array())) required.push_back(text(name, where + ".required"));
    auto is_required = [&](const std::string& name) {
      return std::find(required.begin(), required.end(), name) != required.end();
    };
    const Json named = schema.value("properties", Json::object());
    if (!named.is_object()) fail(where + ".properties", "an object", named);
    for (const auto& [name, property] : named.items()) out.push_back({name, property, is_required(name)});
    for (const auto& name : required)
      if (!named.contains(name)) out.push_back({name, true, true});
    return out;
  }

 private:
  static Json without_annotations(const Json& schema) {
    Json out = schema;
    for (const auto& keyword : kAnnotations) out.erase(keyword);
    return out;
  }
  static std::string text(const Json& json, const std::string& where) {
    if (!json.is_string()) fail(where, "a string", json);
    return json;
  }
  static int64_t bound(const Json& schema, const char* keyword, int64_t otherwise, const std::string& where) {
    if (!schema.contains(keyword)) return otherwise;
    const Json& value = schema[keyword];
    if (!value.is_number_integer() || value < 0 || value > 100000)
      fail(cat(where, ".", keyword), "a number from 0 to 100000", value);
    return value;
  }

  const Json& target(const Json& reference, const std::string& where) const {
    auto path = text(reference, where + ".$ref");
    if (path.empty() || path[0] != '#') fail(where + ".$ref", "a reference into this schema, such as #/$defs/name", reference);
    try {
      return root_.at(Json::json_pointer(path.substr(1)));
    } catch (const Json::exception&) {
      fail(where + ".$ref", "a reference to what is there", reference);
    }
  }

  int32_t referred(const Json& schema, const std::string& where) {
    allow(schema, where, {"$ref"});
    auto path = text(schema["$ref"], where + ".$ref");
    if (auto known = references_.find(path); known != references_.end()) return known->second;
    const Json& to = target(schema["$ref"], where);
    int32_t number = references_[path] = builder_.declare();
    builder_.define(number, rule(rule_of(to, path)));
    return number;
  }

  Expr value(const Json& schema, const std::string& where) {
    if (schema.contains("const")) return allow(schema, where, {"const", "type"}), literal(dump_python_json(schema["const"]));
    if (schema.contains("enum")) return allow(schema, where, {"enum", "type"}), enumerated(schema, where);
    for (const char* keyword : {"anyOf", "oneOf", "allOf"})
      if (schema.contains(keyword))
        return allow(schema, where, {keyword}), choice(schema[keyword], keyword, cat(where, ".", keyword));
    auto types = types_of(schema, where);
    if (types.empty()) return allow(schema, where, {}), rule(json_.value);
    std::vector<Expr> choices;
    for (const auto& type : types) choices.push_back(of_type(type, types.size() > 1 ? part_for(schema, type) : schema, where));
    return either(std::move(choices));
  }

  // Of several types each has the keywords that are about it.
  static Json part_for(const Json& schema, const std::string& type) {
    static const std::map<std::string, std::set<std::string>> kAbout{
        {"object", {"properties", "required", "additionalProperties"}},
        {"array", {"items", "prefixItems", "minItems", "maxItems"}},
        {"string", {"minLength", "maxLength", "pattern", "format"}},
        {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}}};
    Json out = schema;
    for (const auto& [other, keywords] : kAbout)
      if (other != (type == "integer" ? "number" : type))
        for (const auto& keyword : keywords) out.erase(keyword);
    return out;
  }

  Expr of_type(const std::string& type, const Json& schema, const std::string& where) {
    if (type == "object") return object(schema, where);
    if (type == "array") return array(schema, where);
    if (type == "string") {
      if (without_annotations(schema).size() <= schema.count("type")) return rule(json_.string);
      return sequence({literal("\""), characters(schema, where, json_character), literal("\"")});
    }
    if (type == "number" || type == "integer") return number(type == "integer", schema, where);
    allow(schema, where, {"type"});
    return type == "null" ? literal("null") : either({literal("true"), literal("false")});
  }

  static Expr enumerated(const Json& schema, const std::string& where) {
    auto types = types_of(Json{{"type", schema.value("type", Json::array())}}, where);
    if (!schema["enum"].is_array()) fail(where + ".enum", "a list", schema["enum"]);
    std::vector<Expr> choices;
    for (const auto& value : schema["enum"])
      if (types.empty() || std::any_of(types.begin(), types.end(), [&](auto& type) { return is_type(value, type); }))
        choices.push_back(literal(dump_python_json(value)));
    if (choices.empty()) fail(where + ".enum", "a value of the type", schema["enum"]);
    return either(std::move(choices));
  }

  Expr choice(const Json& list, const std::string& keyword, const std::string& where) {
    if (!list.is_array() || list.empty()) fail(where, "a list of schemas", list);
    if (keyword == "allOf" && list.size() != 1) fail(where, "one schema", list);
    std::vector<Expr> choices;
    for (size_t i = 0; i < list.size(); ++i) {
      for (size_t j = 0; keyword == "oneOf" && j < i; ++j)
        if (!apart(resolved(list[i], where), resolved(list[j], where), where))
          fail(where, "choices that differ by their type, or by a const or an enum of a required property", list);
      choices.push_back(rule(rule_of(list[i], cat(where, "[", i, "]"))));
    }
    return either(std::move(choices));
  }

  // Surely nothing fits both.
  bool apart(const Json& a, const Json& b, const std::string& where) const {
    auto values = [](const Json& schema) {
      if (schema.contains("const")) return Json::array({schema["const"]});
      return schema.value("enum", Json::array());
    };
    if (!a.is_object() || !b.is_object()) return false;
    Json of_a = values(a), of_b = values(b);
    if (!of_a.empty() && !of_b.empty())
      return std::none_of(of_a.begin(), of_a.end(),
                          [&](auto& v) { return std::find(of_b.begin(), of_b.end(), v) != of_b.end(); });
    auto types_a = types_of(a, where), types_b = types_of(b, where);
    auto wide = [](const std::string& type) { return type == "integer" ? "number" : type; };
    bool meet = types_a.empty() || types_b.empty();
    for (const auto& s : types_a)
      for (const auto& t : types_b) meet |= wide(s) == wide(t);
    if (!meet) return true;
    if (types_a != std::vector<std::string>{"object"} || types_b != types_a) return false;
    for (const auto& p : properties(a, where))
      for (const auto& q : properties(b, where))
        if (p.name == q.name && p.required && q.required && apart(resolved(p.schema, where), resolved(q.schema, where), where))
          return true;
    return false;
  }

  Expr number(bool integer, const Json& schema, const std::string& where) {
    allow(schema, where, {"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"});
    int64_t least = -kMostInteger, most = kMostInteger;
    bool bounded = false;
    auto narrow = [&](const char* keyword, auto apply) {
      if (!schema.contains(keyword)) return;
      const Json& value = schema[keyword];
      if (!value.is_number() || std::fabs(value.get<double>()) > double(kMostInteger))
        fail(cat(where, ".", keyword), "a number below 10^15", value);
      apply(value.get<double>());
      bounded = true;
    };
    narrow("minimum", [&](double value) { least = std::max(least, int64_t(std::ceil(value))); });
    narrow("maximum", [&](double value) { most = std::min(most, int64_t(std::floor(value))); });
    narrow("exclusiveMinimum", [&](double value) { least = std::max(least, int64_t(std::floor(value)) + 1); });
    narrow("exclusiveMaximum", [&](double value) { most = std::min(most, int64_t(std::ceil(value)) - 1); });
    if (!bounded) return rule(integer ? json_.integer : json_.number);
    if (least > most) fail(where, "bounds with a whole number between them", schema);
    return integer ? integers_between(least, most) : numbers_between(least, most);
  }

  Expr array(const Json& schema, const std::string& where) {
    allow(schema, where, {"type", "items", "prefixItems", "minItems", "maxItems"});
    int64_t least = bound(schema, "minItems", 0, where), most = bound(schema, "maxItems", -1, where);
    std::vector<Expr> first;
    const Json prefix = schema.value("prefixItems", Json::array());
    for (size_t i = 0; i < prefix.size(); ++i) first.push_back(rule(rule_of(prefix[i], cat(where, ".prefixItems[", i, "]"))));
    const Json items = schema.value("items", Json(true));
    if (items == false) most = most < 0 ? int64_t(first.size()) : std::min(most, int64_t(first.size()));
    Expr item = rule(items == false ? json_.value : rule_of(items, where + ".items"));
    if (most >= 0 && least > most) fail(where, "minItems of at most maxItems", schema);
    return json_.array(first, item, least, most);
  }

  Expr object(const Json& schema, const std::string& where) {
    allow(schema, where, {"type", "properties", "required", "additionalProperties"});
    auto list = properties(schema, where);
    const Json more = schema.value("additionalProperties", Json(!schema.contains("properties")));
    std::vector<JsonValues::Member> members;
    std::vector<std::string> names;
    for (const auto& property : list) {
      members.push_back(
          {json_.key(property.name), rule(rule_of(property.schema, cat(where, ".", property.name))), property.required});
      names.push_back(property.name);
    }
    if (more == false) return json_.object(members, nullptr);
    JsonValues::Member other{other_key(names), rule(rule_of(more, where + ".additionalProperties")), false};
    return json_.object(members, &other);
  }

  static std::string format(const Json& name, const std::string& where) {
    static const std::map<std::string, std::string> kFormats = [] {
      const std::string date = "[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])",
                        time = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])",
                        part = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])", name = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?";
      return std::map<std::string, std::string>{
          {"date", "^" + date + "$"},
          {"time", "^" + time + "$"},
          {"date-time", "^" + date + "T" + time + "$"},
          {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
          {"email", "^[A-Za-z0-9_]{1,20}(\\.[A-Za-z0-9_]{1,20}){0,3}@" + name + "(\\." + name + "){1,3}$"},
          {"ipv4", "^" + part + "(\\." + part + "){3}$"}};
    }();
    auto found = name.is_string() ? kFormats.find(name.get<std::string>()) : kFormats.end();
    if (found == kFormats.end()) fail(where + ".format", "date, time, date-time, uuid, email or ipv4", name);
    return found->second;
  }

  GrammarBuilder& builder_;
  const JsonValues& json_;
  const Json& root_;                           // what references lead into
  std::map<std::string, int32_t> references_;  // rules by a reference
};

// The calls' tags and their parameters.
class ToolCompiler {
 public:
  explicit ToolCompiler(Expr marker) : marker_(std::move(marker)) {}

  Expr block(const std::vector<Expr>& calls) const {
    return sequence({literal("\n\n"), tag("<", "function_calls>\n"), repeat(sequence({either(calls), literal("\n")}), 1),
                     tag("</", "function_calls>")});
  }

  Expr call(Compiler& compiler, const std::string& name, const Json& schema, const std::string& where) const {
    std::vector<Expr> parameters;
    std::vector<bool> required;
    for (const auto& property : compiler.properties(schema, where)) {
      std::vector<Expr> values;
      add_values(compiler, property.schema, cat(where, ".", property.name), values);
      parameters.push_back(sequence(
          {tag("<", cat("parameter name=\"", property.name, "\" string=\"")), either(values), tag("</", "parameter>\n")}));
      required.push_back(property.required);
    }
    std::vector<Expr> choices;  // by the first parameter; without any an empty line stands for them
    for (size_t first = 0; first <= parameters.size(); ++first) {
      std::vector<Expr> parts;
      for (size_t i = first; i < parameters.size(); ++i)
        parts.push_back(i == first || required[i] ? parameters[i] : repeat(parameters[i], 0, 1));
      if (parts.empty()) parts.push_back(literal("\n"));
      choices.push_back(sequence(std::move(parts)));
      if (first < required.size() && required[first]) break;
    }
    return sequence({tag("<", cat("invoke name=\"", name, "\">\n")), either(std::move(choices)), tag("</", "invoke>")});
  }

 private:
  Expr tag(const std::string& before, const std::string& behind) const {
    return sequence({literal(before), marker_, literal(behind)});
  }

  // What stands behind string=": strings as they are, all else as JSON.
  void add_values(Compiler& compiler, const Json& unresolved, const std::string& where, std::vector<Expr>& values) const {
    const Json& schema = compiler.resolved(unresolved, where);
    auto raw = [&](Expr text) { values.push_back(sequence({literal("true\">"), std::move(text)})); };
    auto json = [&](const Json& of) { values.push_back(sequence({literal("false\">"), rule(compiler.rule_of(of, where))})); };
    if (!schema.is_object()) return json(schema);
    for (const char* keyword : {"anyOf", "oneOf"})
      if (schema.contains(keyword) && schema[keyword].is_array()) {
        for (size_t i = 0; i < schema[keyword].size(); ++i)
          add_values(compiler, schema[keyword][i], cat(where, ".", keyword, "[", i, "]"), values);
        return;
      }
    if (schema.contains("const") || schema.contains("enum")) {
      for (const auto& value : schema.contains("const") ? Json::array({schema["const"]}) : schema["enum"]) {
        if (value.is_string()) raw(literal(value.get<std::string>()));
        else json({{"const", value}});
      }
      return;
    }
    for (const auto& type : types_of(schema, where)) {
      Json one = schema;
      one["type"] = type;
      if (type != "string") json(one);
      else if (one.contains("pattern") || one.contains("format") || one.contains("minLength") || one.contains("maxLength"))
        raw(compiler.characters(one, where, one_of));
      else raw(text_without({v32::kMarker}));
    }
    if (types_of(schema, where).empty()) json(schema);
  }

  Expr marker_;
};

using Specials = std::map<std::string, int32_t>;

// A word of the format, as its token or written out.
Expr word(std::string_view text, const Specials& specials) {
  return specials.contains(std::string(text)) ? either({special(text), literal(text)}) : literal(text);
}

Expr call_block(GrammarBuilder& builder, const JsonValues& json, const std::vector<Json>& tools, const Specials& specials) {
  ToolCompiler tags(word(v32::kMarker, specials));
  std::vector<Expr> calls;
  for (size_t i = 0; i < tools.size(); ++i) {
    auto where = cat("tools[", i, "]");
    if (!tools[i].is_object() || !tools[i].contains("name") || !tools[i]["name"].is_string())
      fail(where, "a function with a name", tools[i]);
    const Json parameters = tools[i].value("parameters", Json::object());
    Compiler compiler(builder, json, parameters);
    calls.push_back(tags.call(compiler, tools[i]["name"], parameters, where + ".parameters"));
  }
  return tags.block(calls);
}

}  // namespace

Grammar json_grammar(bool object) {
  GrammarBuilder builder;
  JsonValues json(builder);
  return builder.build(object ? json.any_object : json.value);
}

Grammar schema_grammar(const Json& schema) {
  GrammarBuilder builder;
  JsonValues json(builder);
  return builder.build(Compiler(builder, json, schema).rule_of(schema, "#"));
}

Grammar tool_call_grammar(const std::vector<Json>& tools, const std::map<std::string, int32_t>& specials) {
  FULGUR_CHECK(!tools.empty(), "[schema] tools: expected one at least, got none");
  GrammarBuilder builder;
  JsonValues json(builder);
  return builder.build(builder.define(call_block(builder, json, tools, specials)));
}

Grammar answer_grammar(const std::vector<Json>& tools, bool thinking, const std::map<std::string, int32_t>& specials) {
  GrammarBuilder builder;
  JsonValues json(builder);
  auto text = text_without({v32::kBos, v32::kEos, v32::kThink, v32::kThinkEnd, v32::kMarker});
  std::vector<Expr> parts;
  if (thinking) parts = {text, word(v32::kThinkEnd, specials)};
  parts.push_back(text);
  if (!tools.empty()) parts.push_back(repeat(call_block(builder, json, tools, specials), 0, 1));
  return builder.build(builder.define(sequence(std::move(parts))));
}

Grammar regex_grammar(std::string_view pattern) {
  GrammarBuilder builder;
  return builder.build(builder.define(regex(pattern)));
}

}  // namespace fulgur
