// Masks against each token tried alone, and what random tokens under them make against other readers of it.
#include "fulgur/text/constraint.h"

#include <gtest/gtest.h>

#include <regex>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/base/random.h"
#include "fulgur/base/utf8.h"
#include "fulgur/text/regex.h"
#include "fulgur/text/schema.h"
#include "fulgur/text/v32_parse.h"

namespace fulgur {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer made(std::filesystem::path(FULGUR_GOLDEN "/tokenizer/tokenizer.json"));
  return made;
}
std::shared_ptr<const TokenTree> tree() {
  static const auto made = std::make_shared<const TokenTree>(tokenizer());
  return made;
}

bool allowed(const TokenMask& mask, int32_t id) { return mask[id / 64] >> id % 64 & 1; }

// A text of random tokens that the constraint allows. It ends where it may with some chance, and must once it is long: then
// a token that ends it soonest is taken.
std::string random_text(const Constraint& constraint, uint64_t seed) {
  RandomStream random(seed, "text");
  std::string out;
  int32_t state = constraint.start();
  for (int made = 0; made < 400; ++made) {
    auto mask = constraint.mask(state);
    std::vector<int32_t> ids;
    for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
      if (allowed(*mask, id)) ids.push_back(id);
      bool fits = made % 16 != 0 ? allowed(*mask, id) : constraint.advance(state, id) >= 0;
      EXPECT_EQ(allowed(*mask, id), fits) << id << " behind " << out;
    }
    if (constraint.may_end(state) && (ids.empty() || random.uniform() < .2)) return out;
    EXPECT_FALSE(ids.empty()) << "a dead end behind " << out;
    if (ids.empty()) return out;
    int32_t id = ids[random.below(ids.size())];
    for (int32_t closing : ids)  // what is long is closed
      if (made > 60 && tokenizer().decode({closing}).find_first_of("\"]}>") != std::string::npos && random.uniform() < .2)
        id = closing;
    out += tokenizer().decode({id});
    state = constraint.advance(state, id);
  }
  return "";  // not at its end
}

std::vector<std::string> random_texts(Grammar grammar, int count) {
  Constraint constraint(std::move(grammar), tree());
  std::vector<std::string> out;
  for (int i = 0; i < count; ++i)
    if (auto text = random_text(constraint, i); !text.empty()) out.push_back(text);
  EXPECT_GE(int(out.size()), count / 3);
  return out;
}

bool matches(Grammar grammar, const std::string& text) {
  Constraint constraint(std::move(grammar), tree());
  int32_t state = constraint.start();
  for (int32_t id : tokenizer().encode(text, true)) {
    state = constraint.advance(state, id);
    if (state < 0) return false;
  }
  return constraint.may_end(state);
}

TEST(Constraint, RegularExpressionsMatchWhatStdRegexMatches) {
  for (auto pattern : {"^a(b|cd)*e{2,3}$", "^[a-f0-9]{4}-\\d+$", "^[^x\\s]+x?$", "^(foo|foobar|barfoo)$", "^\\w+(,\\w+){0,2}$",
                       "^$|^-?[1-9]$"}) {
    for (const auto& text : random_texts(regex_grammar(pattern), 30))
      if (std::all_of(text.begin(), text.end(), [](char c) { return uint8_t(c) < 0x80; })) {
        EXPECT_TRUE(std::regex_match(text, std::regex(pattern))) << pattern << ": " << text;
      }
    for (const char* text :
         {"", "a", "abee", "acdbeee", "abeeee", "00ff-12", "00fg-1", "foobar", "foob", "a,b,c", "a,b,c,d", "-7", "xx", "ax"})
      EXPECT_EQ(matches(regex_grammar(pattern), text), std::regex_match(text, std::regex(pattern))) << pattern << ": " << text;
  }
  EXPECT_TRUE(matches(regex_grammar("b+"), "abba")) << "without ends it may be anywhere";
  EXPECT_TRUE(matches(regex_grammar("^.[^é]é$"), "你bé"));
}

TEST(Constraint, AnyTextOfTheJsonGrammarIsJson) {
  for (const auto& text : random_texts(json_grammar(), 60)) EXPECT_NO_THROW(parse_python_json(text, "made")) << text;
  for (const auto& text : random_texts(json_grammar(/*object=*/true), 60))
    EXPECT_TRUE(parse_python_json(text, "made").is_object()) << text;
  for (const char* text :
       {R"({"a": [1, -2.5e3, "\u00e9 ü\n", {}], "b": {"c": null}})", "[[[[]]]]", "\"\"", "0", "{\n  \"a\": true\n}"})
    EXPECT_TRUE(matches(json_grammar(), text) || std::string(text).find("\\u00e9") != std::string::npos) << text;
  for (const char* text : {"{,}", "[1,]", "01", "\"\n\"", "{\"a\" 1}", "nul", "[1] "})
    EXPECT_FALSE(matches(json_grammar(), text)) << text;
}

Json schema(const char* text) { return parse_python_json(text, "schema"); }

TEST(Constraint, SchemasAllowWhatTheySay) {
  struct Case {
    const char* schema;
    std::vector<const char*> fits, others;
  };
  for (
      const auto& c : std::vector<Case>{
          {R"({"type": "integer", "minimum": -3, "maximum": 120})",
           {"-3", "0", "7", "99", "120"},
           {"-4", "121", "1.0", "007", "1000"}},
          {R"({"type": "number", "minimum": 0, "maximum": 1})", {"0", "0.5", "1", "1.0"}, {"-0.5", "1.5", "2"}},
          {R"({"type": "integer", "exclusiveMinimum": 5, "exclusiveMaximum": 7})", {"6"}, {"5", "7"}},
          {R"({"type": "string", "minLength": 2, "maxLength": 3})",
           {R"("ab")", R"("你好a")", R"("\n\"")"},
           {R"("a")", R"("abcd")"}},
          {R"({"type": "string", "pattern": "^a\"+$"})", {R"("a\"\"")"}, {R"("a")", R"("b\"")"}},
          {R"({"enum": ["x", 1, null, {"a": [1.0]}]})", {R"("x")", "1", "null", R"({"a": [1.0]})"}, {R"("y")", "2"}},
          {R"({"type": ["string", "null"]})", {"null", R"("a")"}, {"1", "true"}},
          {R"({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3})",
           {"[true]", "[true, false,true]"},
           {"[]", "[1]", "[true,true,true,true]"}},
          {R"({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": false})",
           {"[]", "[1]", "[1, 2]"},
           {"[2]", "[1,2,3]"}},
          {R"({"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 0}, "minItems": 2})",
           {"[1,0]", "[1,0,0]"},
           {"[1]", "[0,0]"}},
          {R"({"properties": {"a": {"type": "integer"}, "b": {"type": "null"}, "c": {}}, "required": ["b"]})",
           {R"({"a": 1, "b": null})", R"({"b": null, "c": [1]})", R"({"b":null})"},
           {"{}", R"({"a": 1})", R"({"b": null, "a": 1})", R"({"b": null, "x": 1})"}},
          {R"({"type": "object", "properties": {"a": {}, "ab": {}}, "additionalProperties": {"type": "integer"}})",
           {R"({"b": 1, "abc": 2, "": 3})", R"({"a": "", "ab": "", "x": 1})"},
           {R"({"x": ""})", R"({"b": 1, "a": ""})"}},
          {R"({"type": "object"})", {"{}", R"({"x": {"y": 1}})"}, {"[]"}},
          {R"({"$defs": {"tree": {"type": "object", "properties": {"v": {"type": "integer"}, "kids": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}, "required": ["v"]}}, "$ref": "#/$defs/tree"})",
           {R"({"v": 1, "kids": [{"v": 2}, {"v": 3, "kids": []}]})"},
           {R"({"v": 1, "kids": [{}]})"}},
          {R"({"oneOf": [{"type": "object", "properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}, "required": ["kind", "x"]},
                {"type": "object", "properties": {"kind": {"const": "b"}}, "required": ["kind"]}]})",
           {R"({"kind": "a", "x": 1})", R"({"kind": "b"})"},
           {R"({"kind": "a"})"}},
          {R"({"type": "string", "format": "date"})", {R"("2026-11-27")"}, {R"("2026-13-27")", R"("27.11.2026")"}}}) {
    for (auto text : c.fits) EXPECT_TRUE(matches(schema_grammar(schema(c.schema)), text)) << c.schema << ": " << text;
    for (auto text : c.others) EXPECT_FALSE(matches(schema_grammar(schema(c.schema)), text)) << c.schema << ": " << text;
    for (const auto& text : random_texts(schema_grammar(schema(c.schema)), 9))
      EXPECT_NO_THROW(parse_python_json(text, "made")) << text;
  }
}

TEST(Constraint, ErrorsNameThePlaceInTheSchema) {
  for (auto [text, expected] : std::vector<std::pair<const char*, const char*>>{
           {R"({"type": "object", "properties": {"a": {"type": "string", "contentEncoding": "x"}}})",
            "#.a.contentEncoding: expected a keyword that is understood"},
           {R"({"type": "strin"})", "#.type: expected a type of JSON, got \"strin\""},
           {R"({"not": {}})", "#.not: expected a keyword"},
           {R"({"$ref": "http://x"})", "#.$ref: expected a reference into this schema"},
           {R"({"$ref": "#/$defs/none"})", "#.$ref: expected a reference to what is there"},
           {R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "#.oneOf: expected choices that differ"},
           {R"~({"type": "string", "pattern": "(?=a)"})~", "pattern '(?=a)': byte 2: expected a group"},
           {R"({"type": "string", "pattern": "a{3,1}"})", "expected a count whose ends are in order"},
           {R"({"type": "integer", "minimum": 3, "maximum": 2})", "expected bounds with a whole number between them"},
           {R"({"$ref": "#"})", "expected some text that fits"},
           {R"({"anyOf": [{"$ref": "#"}, {"const": 1}]})", "expected rules that read something"},
           {R"({"enum": []})", "#.enum: expected a value of the type"},
           {"false", "#: expected a schema that something fits"}}) {
    try {
      schema_grammar(schema(text));
      ADD_FAILURE() << text << " was read";
    } catch (const InputError& error) {
      EXPECT_NE(std::string(error.what()).find(expected), std::string::npos) << error.what();
    }
  }
}

TEST(Constraint, TextWithoutWordsIsAllThatHasNoneOfThem) {
  const std::vector<std::string_view> words{"abab", "bc", "cca"};
  GrammarBuilder builder;
  auto grammar = builder.build(builder.define(sequence({text_without(words), literal(".")})));
  RandomStream random(3, "words");
  int without = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (uint64_t left = random.below(12); left > 0; --left) text += "aabbccx"[random.below(7)];
    bool none = std::none_of(words.begin(), words.end(), [&](auto word) { return text.find(word) != std::string::npos; });
    EXPECT_EQ(matches(grammar, text + "."), none) << text;
    without += none;
  }
  EXPECT_TRUE(without > 300 && without < 1700) << without;
}

TEST(Constraint, AnswersAreReadByTheStrictParserWithAndWithoutCalls) {
  std::vector<Json> tools{schema(
      R"({"name": "lookup", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}})")};
  for (bool thinking : {false, true}) {
    auto grammar = answer_grammar(tools, thinking, tree()->specials);
    for (const auto& text : random_texts(grammar, 40))
      parse_v32(text + "<｜end▁of▁sentence｜>", thinking ? ThinkingMode::thinking : ThinkingMode::chat);
    std::string answer = thinking ? "so be it</think>red" : "red", marker = "｜DSML｜";
    std::string call = answer + "\n\n<" + marker + "function_calls>\n<" + marker + "invoke name=\"lookup\">\n<" + marker +
                       "parameter name=\"name\" string=\"true\">a1</" + marker + "parameter>\n</" + marker + "invoke>\n</" +
                       marker + "function_calls>";
    EXPECT_TRUE(matches(grammar, answer));
    EXPECT_TRUE(matches(grammar, call));
    EXPECT_FALSE(matches(grammar, call + " ")) << "nothing stands behind calls";
    EXPECT_FALSE(matches(answer_grammar({}, thinking, tree()->specials), call)) << "without tools";
    EXPECT_FALSE(matches(grammar, answer + "</think>"));
    if (thinking) {
      EXPECT_FALSE(matches(grammar, "red")) << "reasoning without its end";
    }
  }
}

TEST(Constraint, ToolCallsAreReadByTheStrictParserAndFitTheirSchemas) {
  std::vector<Json> tools{
      schema(R"({"name": "search", "parameters": {"type": "object", "properties": {"query": {"type": "string"},
                                     "top": {"type": "integer", "minimum": 1, "maximum": 20}, "sites": {"type": "array", "items": {"type": "string"}}},
                                     "required": ["query"]}})"),
      schema(R"({"name": "now"})"),
      schema(R"({"name": "set", "parameters": {"type": "object", "properties": {"unit": {"enum": ["C", "F", 1]},
                                     "to": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}})")};
  for (const auto& text : random_texts(tool_call_grammar(tools, tree()->specials), 60)) {
    auto message = parse_v32(text, ThinkingMode::chat);
    EXPECT_EQ(message.content, "");
    EXPECT_FALSE(message.tool_calls.empty());
    for (const auto& call : message.tool_calls) {
      Json arguments = parse_python_json(call.arguments, text);
      if (call.name == "search") {
        EXPECT_TRUE(arguments["query"].is_string()) << text;
      }
      if (arguments.contains("top")) {
        EXPECT_TRUE(arguments["top"] >= 1 && arguments["top"] <= 20) << text;
      }
      if (arguments.contains("to")) {
        EXPECT_TRUE(arguments["to"].is_string() || arguments["to"].is_null()) << text;
      }
      EXPECT_TRUE(call.name == "search" || call.name == "now" || call.name == "set") << text;
    }
  }
}

}  // namespace
}  // namespace fulgur
