// Rewards that need nothing but the answer, and the guard around all of them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <memory>
#include <thread>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/base/random.h"
#include "fulgur/rl/rewards/guard.h"
#include "fulgur/rl/rewards/language.h"
#include "fulgur/rl/rewards/regex_match.h"
#include "fulgur/rl/rewards/schema_match.h"
#include "fulgur/text/bytes.h"
#include "fulgur/text/constraint.h"
#include "fulgur/text/schema.h"

namespace fulgur {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

TEST(OutcomeTally, CountsInvalidOnesByKindAndNotAsZero) {
  OutcomeTally tally;
  for (const auto& outcome : {Outcome{0, "wrong: very"}, Outcome{1}, invalid_outcome("time limit: 5 s"),
                              invalid_outcome("time limit: 6 s"), invalid_outcome("endpoint: status 500")})
    tally.add(outcome);
  EXPECT_EQ(tally.valid, 2);
  EXPECT_EQ(tally.line(), "2 valid, 3 invalid (endpoint 1, time limit 2)");
  EXPECT_EQ(OutcomeTally{}.line(), "0 valid, 0 invalid");
}

TEST(ExactMatch, PassesOverWhiteSpaceAroundAndNothingElse) {
  EXPECT_EQ(exact_match(" a b\n", "a b").score, 1);
  EXPECT_EQ(exact_match("", " \t\r\n").score, 1);
  for (const char* other : {"a  b", "A b", "a b.", "", "a"}) EXPECT_EQ(exact_match(other, "a b").score, 0) << other;
}

TEST(LastNumber, ReadsWhatAnAnswerEndsWith) {
  struct Case {
    const char* answer;
    std::optional<double> number;
  };
  for (const auto& [answer, number] : std::vector<Case>{
           {"42", 42},
           {"First 7, then 42.", 42},
           {"-0", 0},
           {"is -1.5", -1.5},
           {"\u22123", -3},
           {"+3", 3},
           {"x=-3", -3},
           {"(-3)", -3},
           {"10-5", 5},
           {"x-5", 5},
           {"(1)-5", 5},
           {"1 - 5", 5},
           {"1,234", 1234},
           {"1,234,567.5", 1234567.5},
           {"-1,234", -1234},
           {"1,2,3", 3},
           {"1,234,5", 5},
           {"12,34", 34},
           {"1234,567", 567},
           {"1e3", 1000},
           {"1.5E-2", .015},
           {"2e", 2},
           {"2e+", 2},
           {"3/4", .75},
           {"-3/4", -.75},
           {"1,000/8", 125},
           {"12/31/2024", 2024},
           {"3/0", std::nullopt},
           {"5, no, 1e999", std::nullopt},
           {".5", .5},
           {"-.5", -.5},
           {"4.5.", 4.5},
           {"so...5", 5},
           {"$1,250.50", 1250.5},
           {"50%", 50},
           {"7km", 7},
           {"x2", std::nullopt},
           {"H2O", std::nullopt},
           {"a_1", std::nullopt},
           {"答案是42。", 42},
           {"", std::nullopt},
           {"-", std::nullopt},
           {"none.", std::nullopt},
           {"\\frac{3}{4}", .75},
           {"-\\dfrac{1}{2}", -.5},
           {"\\frac{-1}{2}", -.5},
           {"\\frac{1}{0}", std::nullopt},
           {"\\boxed{42}, checked 3 times", 42},
           {"\\boxed{1} no, \\boxed{\\frac{1}{4}} of 9", .25},
           {"\\boxed{x} of 9", std::nullopt},
           {"\\boxed{7", 7},
       })
    EXPECT_EQ(last_number(answer), number) << answer;
}

RC_GTEST_PROP(LastNumber, ReadsEveryDoubleAsItIsPrinted, (double value)) {
  if (!std::isfinite(value)) return;
  std::ostringstream out;
  out.precision(17);
  out << "It is " << value;
  RC_ASSERT(last_number(out.str()) == std::optional(value));
}

RC_GTEST_PROP(LastNumber, NeverFailsOnAnyText, ()) {
  auto text = *rc::gen::container<std::string>(rc::gen::elementOf(std::string("0123,./-+eE\\frac{}boxed \xe2\x88\x92")));
  if (auto number = last_number(text)) RC_ASSERT(std::isfinite(*number));
}

TEST(NumericMatch, ToleranceIsAbsoluteNearZeroAndRelativeBeyondOne) {
  EXPECT_EQ(numeric_match("0.1", 0.1).score, 1);
  EXPECT_EQ(numeric_match("0.1000001", 0.1).score, 0);
  EXPECT_EQ(numeric_match("-0", 0).score, 1);
  EXPECT_EQ(numeric_match("0.009", 0, .01).score, 1);
  EXPECT_EQ(numeric_match("0.011", 0, .01).score, 0);
  EXPECT_EQ(numeric_match("1009", 1000, .01).score, 1);
  EXPECT_EQ(numeric_match("1011", 1000, .01).score, 0);
  EXPECT_EQ(numeric_match("-1000", 1000, .01).score, 0);
  EXPECT_EQ(numeric_match("no idea", 0).score, 0) << "wrong, not invalid";
  EXPECT_THROW(numeric_match("1", std::nan("")), InputError);
  EXPECT_THROW(numeric_match("1", 1, -1), InputError);
}

TEST(RegexMatch, FindsAnywhereUnlessAnchored) {
  RegexMatch four("\\b4\\b"), all("^a+$"), accented("^.\u00e9$");
  EXPECT_EQ(four("it is 4.").score, 1);
  EXPECT_EQ(four("it is 42.").score, 0);
  EXPECT_EQ(all("aaa").score, 1);
  EXPECT_EQ(all("aaa\n").score, 0) << "$ is the very end";
  EXPECT_EQ(accented("\u4f60\u00e9").score, 1) << "a character, not a byte";
  EXPECT_EQ(RegexMatch("b")("\xff\xfe b").score, 1) << "broken UTF-8 is passed over";
  EXPECT_EQ(RegexMatch(".")("\xff").score, 0);
  EXPECT_EQ(RegexMatch("")("").score, 1);
  for (const char* pattern : {"(", "a{2,1}", "\\C", "[z-a]", "\xff"}) EXPECT_THROW(RegexMatch{pattern}, InputError) << pattern;
}

TEST(RegexMatch, IsInvalidWhereItWouldTakeForever) {
  auto begin = std::chrono::steady_clock::now();
  auto outcome = RegexMatch("^(a+)+$")(std::string(40, 'a') + "b");
  EXPECT_EQ(outcome.score, std::nullopt);
  EXPECT_THAT(outcome.why, StartsWith("match limit: "));
  EXPECT_LT(seconds_since(begin), 5);
}

TEST(SchemaMatch, FollowsDraft202012) {
  struct Case {
    const char* schema;
    std::vector<const char*> fits, others;
  };
  for (const auto& c : std::vector<Case>{
           {"true", {"1", " [] \n"}, {"", "{", "[1,]", "1 2", "'a'", "NaN", "\"\xff\"", "1e999"}},
           {"false", {}, {"1", "null"}},
           {R"({"type": "integer"})", {"1", "-5", "1.0", "1e2"}, {"1.5", "\"1\"", "null", "true"}},
           {R"({"type": "number"})", {"1", "1.5"}, {"\"1\"", "false"}},
           {R"({"type": ["string", "null"]})", {"\"\"", "null"}, {"0", "[]", "{}"}},
           {R"({"type": "boolean"})", {"true"}, {"1"}},
           {R"({"enum": [1, "a", {"x": 1, "y": [2]}]})", {"1.0", "\"a\"", R"({"y": [2], "x": 1})"}, {"2", R"({"x": 1})"}},
           {R"({"const": {"a": 1, "b": 2}})", {R"({"b": 2, "a": 1})"}, {R"({"a": 1})", R"({"a": 1, "b": 2, "c": 3})"}},
           {R"({"properties": {"a": {"type": "integer"}}, "required": ["a"]})",
            {R"({"a": 1})", R"({"b": 0, "a": 1})", "3"},
            {R"({"a": "1"})", "{}"}},
           {R"({"type": "object", "properties": {"a": true}, "additionalProperties": false})", {R"({"a": 1})"}, {R"({"b": 1})"}},
           {R"({"patternProperties": {"^n": {"type": "number"}}, "additionalProperties": {"type": "string"}})",
            {R"({"n1": 1, "x": "y"})"},
            {R"({"n1": "1"})", R"({"x": 1})"}},
           {R"({"propertyNames": {"maxLength": 2}, "minProperties": 1, "maxProperties": 2})",
            {R"({"ab": 1})"},
            {"{}", R"({"abc": 1})", R"({"a": 1, "b": 2, "c": 3})"}},
           {R"({"dependentRequired": {"a": ["b"]}})", {R"({"b": 1})", R"({"a": 1, "b": 2})"}, {R"({"a": 1})"}},
           {R"({"prefixItems": [{"type": "string"}], "items": {"type": "number"}})",
            {"[]", R"(["a"])", R"(["a", 1, 2])"},
            {"[1]", R"(["a", "b"])"}},
           {R"({"minItems": 1, "maxItems": 2, "uniqueItems": true})", {"[1]", "[1, 2]"}, {"[]", "[1, 2, 3]", "[1, 1.0]"}},
           {R"({"contains": {"const": 1}, "minContains": 2, "maxContains": 3})",
            {"[1, 0, 1]", "[1, 1, 1]"},
            {"[1]", "[1, 1, 1, 1]"}},
           {R"({"contains": true})", {"[0]"}, {"[]"}},
           {R"({"minLength": 2, "maxLength": 3})", {"\"\u4f60\u597d\"", R"("\u00e9ab")"}, {"\"a\"", "\"abcd\""}},
           {R"({"pattern": "^\\d+$"})", {"\"12\"", "12"}, {"\"12a\"", "\"\"", "\"\u0663\""}},
           {R"({"minimum": 0, "exclusiveMaximum": 10})", {"0", "9.99"}, {"-0.1", "10", "1e300"}},
           {R"({"maximum": 5, "exclusiveMinimum": 1})", {"5", "1.1"}, {"5.5", "1"}},
           {R"({"multipleOf": 0.1})", {"0.3", "7", "-1.1"}, {"0.35"}},
           {R"({"multipleOf": 3})", {"0", "-6", "9007199254740993"}, {"-5", "4", "9007199254740992"}},
           {R"({"allOf": [{"minimum": 1}, {"maximum": 2}]})", {"1"}, {"0", "3"}},
           {R"({"anyOf": [{"type": "string"}, {"minimum": 5}]})", {"\"a\"", "6", "null"}, {"4"}},
           {R"({"oneOf": [{"type": "number"}, {"minimum": 5}]})", {"4", "\"a\""}, {"6"}},
           {R"({"not": {"type": "string"}})", {"1"}, {"\"a\""}},
           {R"({"if": {"minimum": 5}, "then": {"multipleOf": 2}, "else": {"type": "integer"}})", {"6", "3"}, {"7", "3.5"}},
           {R"({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}})",
            {"[]", "[[], [[]]]"},
            {"1", "[[], [[0]]]"}},
           {R"({"format": "date"})", {"\"2024-02-29\"", "5"}, {"\"2023-02-29\"", "\"2024-2-29\"", "\"2024-13-01\""}},
           {R"({"format": "date-time"})", {"\"2024-02-29T23:59:59.5Z\""}, {"\"2024-02-30T00:00:00Z\"", "\"2024-02-29\""}},
           {R"({"format": "time"})", {"\"12:00:00+02:00\""}, {"\"24:00:00Z\"", "\"12:00:00\""}},
           {R"({"format": "uuid"})", {"\"123e4567-E89B-12d3-a456-426614174000\""}, {"\"123e4567\""}},
           {R"({"format": "email"})", {"\"a.b+c@d.example\""}, {"\"a@\"", "\"a b@c\"", "\".a@b\""}},
           {R"({"format": "ipv4"})", {"\"127.0.0.1\""}, {"\"127.0.0.256\"", "\"1.2.3\"", "\"01.2.3.4\""}},
       }) {
    SchemaMatch match(parse_json(c.schema, "schema"));
    for (const char* text : c.fits) EXPECT_EQ(match(text).score, 1) << c.schema << " " << text << ": " << match(text).why;
    for (const char* text : c.others) EXPECT_EQ(match(text).score, 0) << c.schema << " " << text;
  }
}

TEST(SchemaMatch, NamesThePlace) {
  SchemaMatch match(parse_json(R"({"properties": {"a": {"items": {"type": "string"}}}})", "schema"));
  EXPECT_EQ(match(R"({"a": ["x", 1]})").why, "/a/1: type");
  EXPECT_THAT(match("{").why, HasSubstr("expected JSON"));
  for (const char* schema :
       {"1", R"({"typ": "string"})", R"({"type": "text"})", R"({"items": [1]})", R"({"properties": {"a": 1}})",
        R"({"minLength": -1})", R"({"minLength": 1.5})", R"({"required": "a"})", R"({"pattern": "("})", R"({"pattern": 1})",
        R"({"multipleOf": 0})", R"({"anyOf": []})", R"({"$ref": "#/none"})", R"({"$ref": "http://x"})", R"({"format": "x"})",
        R"({"$ref": "#/title", "title": "x"})", R"({"patternProperties": {"(": true}})", R"({"enum": 1})"})
    EXPECT_THROW(SchemaMatch(parse_json(schema, "schema")), InputError) << schema;
}

TEST(SchemaMatch, IsInvalidWhereItCannotBeDecided) {
  auto round = SchemaMatch(parse_json(R"({"$ref": "#"})", "schema"))("1");
  EXPECT_EQ(round.score, std::nullopt);
  EXPECT_THAT(round.why, StartsWith("references: "));
  auto twice = SchemaMatch(parse_json(R"({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]})", "schema"))("1");
  EXPECT_EQ(twice.score, std::nullopt) << "and in time";
  auto slow = SchemaMatch(parse_json(R"({"pattern": "^(a+)+$"})", "schema"))('"' + std::string(40, 'a') + "b\"");
  EXPECT_THAT(slow.why, StartsWith("match limit: "));
}

// What the sampler's grammar lets a model write must be worth 1.
TEST(SchemaMatch, AllowsWhatTheGrammarOfTheSchemaWrites) {
  std::vector<std::string> texts;
  for (const auto& character : byte_characters()) texts.push_back(character);
  Tokenizer tokenizer(gguf_vocabulary(texts, std::vector<int32_t>(texts.size(), 1), {}, "gpt-2", "test"));
  auto tree = std::make_shared<const TokenTree>(tokenizer);
  int made = 0;
  for (const char* schema :
       {R"({"type": "object", "properties": {"a": {"type": "integer", "minimum": -3, "maximum": 120}, "b": {"type": "boolean"}},
            "required": ["b"]})",
        R"({"type": "array", "items": {"enum": ["x", 1, null]}, "minItems": 1, "maxItems": 3})",
        R"({"anyOf": [{"type": "string", "format": "date"}, {"type": "number", "minimum": 0, "maximum": 1}]})",
        R"({"type": "string", "pattern": "^(ab|c\\d)+$"})", R"({"type": "string", "minLength": 2, "maxLength": 3})"}) {
    Json parsed = parse_json(schema, "schema");
    Constraint constraint(schema_grammar(parsed), tree);
    SchemaMatch match(parsed);
    for (uint64_t seed = 0; seed < 40; ++seed) {
      RandomStream random(seed, "text");
      std::string text;
      int32_t state = constraint.start();
      while (text.size() < 200 && !(constraint.may_end(state) && random.uniform() < .3)) {
        auto mask = constraint.mask(state);
        std::vector<int32_t> ids;
        for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
          if ((*mask)[id / 64] >> id % 64 & 1) ids.push_back(id);
        if (ids.empty()) break;
        int32_t id = ids[random.below(ids.size())];
        text += tokenizer.decode({id});
        state = constraint.advance(state, id);
      }
      if (!constraint.may_end(state)) continue;
      ++made;
      EXPECT_EQ(match(text).score, 1) << schema << " " << text << ": " << match(text).why;
    }
  }
  EXPECT_GT(made, 150);
}

TEST(StateMatch, HoldsWhereAllChecksHold) {
  Json state = parse_json(R"({"orders": [{"id": 7, "status": "paid", "tags": {"a": 1, "b": 2}}], "a/b": null})", "state");
  EXPECT_EQ(state_match(state, {{"/orders/0/status", "paid"}, {"/orders/1"}, {"/a~1b", nullptr}}).score, 1);
  EXPECT_EQ(state_match(state, {{"/orders/0/tags", Json{{"b", 2}, {"a", 1.0}}}}).score, 1) << "in any order";
  EXPECT_EQ(state_match(state, {{"", state}}).score, 1);
  auto outcome = state_match(state, {{"/orders/0/status", "paid"}, {"/orders/0/id", 8}, {"/orders/0"}, {"/none", nullptr}});
  EXPECT_EQ(outcome.score, 0);
  EXPECT_EQ(outcome.detail["failed"], Json({"/orders/0/id", "/orders/0", "/none"}));
  EXPECT_EQ(state_match(state, {{"/orders/x", 1}}).score, 0);
  EXPECT_EQ(state_match(state, {}).score, 1);
  EXPECT_THROW(state_match(state, {{"orders", 1}}), InputError);
}

TEST(LengthPenalty, IsLinearBeyondTheBudget) {
  EXPECT_EQ(linear_length_penalty(0, 100, .5), 0);
  EXPECT_EQ(linear_length_penalty(100, 100, .5), 0);
  EXPECT_EQ(linear_length_penalty(101, 100, .5), -.5);
  EXPECT_EQ(linear_length_penalty(300, 100, .5), -100);
  EXPECT_THROW(linear_length_penalty(-1, 0, 0), InputError);
  EXPECT_THROW(linear_length_penalty(1, 0, -1), InputError);
}

TEST(LengthReward, IsKimisAndPassesOverInvalidOnes) {
  using Rewards = std::vector<std::optional<double>>;
  EXPECT_EQ(relative_length_rewards({10, 20, 30, 10, 30, 40}, {1, 1, 1, 0, 0, std::nullopt}),
            (Rewards{.5, 0, -.5, 0, -.5, std::nullopt}));
  EXPECT_EQ(relative_length_rewards({5, 1, 5}, {1, std::nullopt, 0}), (Rewards{0, std::nullopt, 0})) << "all equally long";
  EXPECT_EQ(relative_length_rewards({1, 3}, {.5, .7}, .6), (Rewards{0, -.5}));
  EXPECT_EQ(relative_length_rewards({}, {}), Rewards{});
  EXPECT_THROW(relative_length_rewards({1}, {}), InputError);
  EXPECT_THROW(relative_length_rewards({-1}, {1}), InputError);
}

TEST(LanguageConsistency, IsTheShareOfThePromptsScript) {
  EXPECT_EQ(language_consistency("What is it?", "It is a tree, and the end."), 1);
  EXPECT_EQ(language_consistency("What is it?", "Это дерево"), 0);
  EXPECT_EQ(language_consistency("What?", "abcабв"), .5);
  EXPECT_EQ(language_consistency("Что это?", "Дерево"), 1);
  EXPECT_EQ(language_consistency("Τι είναι;", "δέντρο"), 1);
  EXPECT_EQ(language_consistency("이것은 무엇입니까?", "나무입니다"), 1);
  EXPECT_EQ(language_consistency("यह क्या है?", "यह एक पेड़ है"), 1) << "vowel signs are no letters of another script";
  EXPECT_EQ(language_consistency("นี่คืออะไร", "ต้นไม้"), 1);
  EXPECT_EQ(language_consistency("ما هذا؟", "شجرة"), 1);
  EXPECT_EQ(language_consistency("מה זה?", "עץ"), 1);
  EXPECT_EQ(language_consistency("这是什么？", "这是一棵树。"), 1);
  EXPECT_EQ(language_consistency("这是什么？", "This is a tree"), 0);
  EXPECT_EQ(language_consistency("ⴰⵣⵓⵍ", "ⴰⵣⵓⵍ"), 1) << "a script without a name here";
}

TEST(LanguageConsistency, JapaneseIsKanaAndHanTogether) {
  EXPECT_EQ(language_consistency("これは何ですか？", "これは木です。コーヒー"), 1);
  EXPECT_EQ(language_consistency("これは何ですか？", "東京都"), 1) << "short answers may be all Han";
  EXPECT_EQ(language_consistency("これは何ですか？", "我认为这个问题的答案很明显就是一棵很大的树"), 0) << "Chinese";
  EXPECT_LT(language_consistency("这是什么？", "これは木です"), .3);
  EXPECT_EQ(language_consistency("请问の是什么意思，在这个地方可以怎么使用？", "这是一棵树"), 1) << "one kana is a quotation";
}

TEST(LanguageConsistency, ChineseAboutCodeIsChinese) {
  EXPECT_EQ(language_consistency("请用Python写一个quicksort函数", "好的"), 1);
  EXPECT_GT(language_consistency("请用Python写一个quicksort函数", "这是Python的快速排序"), .7);
}

TEST(LanguageConsistency, LeavesOutCodeMathsAndLinks) {
  const char* prompt = "Что это?";
  for (const char* answer :
       {"Вот:\n```python\nprint('hello')\n```\nВсё.", "Вот ```не закрыто print(x)", "~~~\ncode\n~~~ да", "Это `x = foo()` да",
        "``a`b`` да", "Это $x + y$ да", "$$\\alpha + beta$$ да", "\\(abc\\) и \\[def\nghi\\] да", "\\alpha да",
        "\\begin{align}x&=y\\end{align} да", "https://example.org/a?b=c да", "да 12 + 3 = 15", "<b class=\"x\">да</b>",
        "см. www.example.org да", "да \xff\xfe", "\U0001D465 да"})
    EXPECT_EQ(language_consistency(prompt, answer), 1) << answer;
  EXPECT_LT(language_consistency(prompt, "It costs $5 and then $6 да"), .3) << "prices are no maths";
  EXPECT_LT(language_consistency(prompt, "one ` backtick\nand two ` more да"), .3) << "inline code ends in its line";
  EXPECT_LT(language_consistency(prompt, "a < b and more да"), .5);
  EXPECT_EQ(language_consistency("看https://example.org/longlonglonglonglong这里", "好"), 1) << "prose goes on behind a link";
}

TEST(LanguageConsistency, WithoutLettersNothingIsWrong) {
  EXPECT_EQ(language_consistency("1 + 1 = ?", "two"), 1);
  EXPECT_EQ(language_consistency("What is 1 + 1?", "2"), 1);
  EXPECT_EQ(language_consistency("", ""), 1);
}

TEST(LanguageConsistency, ManyOpeningsCostNoMoreThanOne) {
  auto begin = std::chrono::steady_clock::now();
  for (std::string opening : {"\\(", "\\[", "$$ ", "$x ", "`", "<a ", "\\begin{", "``` ``", "\\", "~~ ", "http:// "}) {
    std::string text;
    while (text.size() < 50000) text += opening;
    double share = language_consistency("a", text);
    EXPECT_TRUE(share >= 0 && share <= 1);
  }
  EXPECT_LT(seconds_since(begin), 5);
}

RC_GTEST_PROP(LanguageConsistency, IsAShareOfAnyBytes, (const std::string& prompt, const std::string& answer)) {
  double share = language_consistency(prompt, answer);
  RC_ASSERT(share >= 0 && share <= 1);
}

TEST(RunReward, GivesWhatTheRewardSays) {
  Outcome outcome{.5, "half", {{"x", 1}}};
  EXPECT_EQ(run_reward([outcome] { return outcome; }, 5), outcome);
  EXPECT_EQ(run_reward([] { return invalid_outcome("match limit: x"); }, 5).why, "match limit: x");
  EXPECT_THROW(run_reward([] { return Outcome{}; }, 0), InputError);
  EXPECT_THROW(run_reward([] { return Outcome{}; }, std::nan("")), InputError);
  EXPECT_EQ(run_reward([] { return Outcome{1}; }, INFINITY).score, 1);
}

TEST(RunReward, WhatThrowsOrGivesNoNumberIsInvalid) {
  auto thrown = run_reward([]() -> Outcome { throw InputError("[x] expected y"); }, 5);
  EXPECT_EQ(thrown.score, std::nullopt);
  EXPECT_EQ(thrown.why, "exception: [x] expected y");
  EXPECT_THAT(run_reward([]() -> Outcome { throw 5; }, 5).why, StartsWith("exception: "));
  EXPECT_THAT(run_reward({}, 5).why, StartsWith("exception: ")) << "an empty function";
  EXPECT_EQ(run_reward([] { return Outcome{std::nan("")}; }, 5).score, std::nullopt);
  EXPECT_THAT(run_reward([] { return Outcome{INFINITY}; }, 5).why, StartsWith("no number: "));
}

// Rewards that hang until they are let go, so that no thread outlives the test.
struct Hanging {
  std::atomic<bool> go = false;
  std::atomic<int> ended = 0;
};
std::function<Outcome()> hang(const std::shared_ptr<Hanging>& shared) {
  return [shared] {
    while (!shared->go) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++shared->ended;
    return Outcome{1};
  };
}

TEST(RunReward, WhatHangsIsInvalidInTimeAndTheProcessGoesOn) {
  auto shared = std::make_shared<Hanging>();
  auto begin = std::chrono::steady_clock::now();
  auto outcome = run_reward(hang(shared), .05);
  EXPECT_LT(seconds_since(begin), 2);
  EXPECT_EQ(outcome.score, std::nullopt);
  EXPECT_EQ(outcome.why, "time limit: no answer within 0.05 s");
  EXPECT_GT(shared.use_count(), 1) << "it still has what it uses";
  EXPECT_EQ(run_reward([] { return Outcome{1}; }, 5).score, 1);
  shared->go = true;
  while (shared.use_count() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(shared->ended, 1) << "too late to count";
}

TEST(RunReward, NotTooManyAreLeftBehind) {
  auto shared = std::make_shared<Hanging>();
  for (int i = 0; i < kMostLeftBehind; ++i) EXPECT_THAT(run_reward(hang(shared), .001).why, StartsWith("time limit: "));
  EXPECT_THAT(run_reward(hang(shared), .001).why, StartsWith("left behind: "));
  shared->go = true;
  while (shared.use_count() > 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  while (!run_reward([] { return Outcome{1}; }, 5).score) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

TEST(RunReward, LetsGoOfWhatTheRewardHeldBeforeItReturns) {
  auto held = std::make_shared<int>(1);
  for (int i = 0; i < 200; ++i) {
    run_reward([held] { return Outcome{double(*held)}; }, 5);
    ASSERT_EQ(held.use_count(), 1);
  }
}

}  // namespace
}  // namespace fulgur
