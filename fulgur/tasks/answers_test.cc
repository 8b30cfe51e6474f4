// Answers worked out from the prompts alone, in another way than the families do; and what verifiers and tools say.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <functional>
#include <map>
#include <regex>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/numbers.h"
#include "fulgur/tasks/task.h"

namespace fulgur {
namespace {

std::vector<std::string> matches(const std::string& text, const std::string& pattern) {
  const std::regex regex(pattern);
  std::vector<std::string> out;
  for (std::sregex_iterator at(text.begin(), text.end(), regex), end; at != end; ++at) out.push_back(at->str());
  return out;
}

std::string behind_colon(const std::string& prompt) { return prompt.substr(prompt.rfind(": ") + 2); }

// `answer_of` gives the answer to a prompt; the family's script must give the same.
void expect_answers(const std::string& name, const std::function<std::string(const std::string&)>& answer_of) {
  for (int64_t difficulty = 1; difficulty <= family(name).hardest(); ++difficulty)
    for (uint64_t seed = 0; seed < 50; ++seed) {
      auto task = family(name).task(Split::train, difficulty, seed);
      auto prompt = task.messages.back().content;
      EXPECT_EQ(demonstrate(family(name), task, Strategy::right).back().content, answer_of(prompt)) << prompt;
    }
}

int64_t operate(int64_t a, const std::string& sign, int64_t b) { return sign == "*" ? a * b : a + (sign == "+" ? b : -b); }

TEST(Answers, Reverse) {
  expect_answers("reverse", [](const std::string& prompt) {
    auto text = behind_colon(prompt);
    std::reverse(text.begin(), text.end());
    return text;
  });
}

TEST(Answers, Sort) {
  expect_answers("sort", [](const std::string& prompt) {
    std::multimap<int, std::string> sorted;
    for (const auto& item : matches(behind_colon(prompt), "[^ ]+"))
      sorted.emplace(isdigit(item[0]) ? std::stoi(item) : item[0], item);
    std::string out;
    for (const auto& [value, item] : sorted) out += " " + item;
    return out.substr(1);
  });
}

TEST(Answers, Count) {
  expect_answers("count", [](const std::string& prompt) {
    return std::to_string(matches(behind_colon(prompt), std::string(1, prompt[6])).size());
  });
}

TEST(Answers, Arithmetic) {
  expect_answers("arithmetic", [](const std::string& prompt) {
    auto parts = matches(prompt, "[^ ]+");
    return std::to_string(operate(std::stoll(parts[0]), parts[1], std::stoll(parts[2])));
  });
}

TEST(Answers, Modular) {
  expect_answers("modular", [](const std::string& prompt) {
    auto numbers = matches(prompt, "\\d+");
    auto value = operate(std::stoll(numbers[0]), matches(prompt, "[-+*]")[0], std::stoll(numbers[1]));
    auto modulus = std::stoll(numbers[2]);
    int64_t rest = 0;
    while ((value - rest) % modulus) ++rest;
    return std::to_string(rest);
  });
}

TEST(Answers, Brackets) {
  expect_answers("brackets", [](const std::string& prompt) {
    auto text = prompt.substr(7), before = text;
    do before = text, text = std::regex_replace(text, std::regex(R"( ?(\( \)|\[ \]|\{ \}|< >))"), "");
    while (text != before);
    std::string out;
    for (const auto& open : matches(text, "[^ ]"))
      out = std::map<std::string, std::string>{{"(", ")"}, {"[", "]"}, {"{", "}"}, {"<", ">"}}[open] + (out.empty() ? "" : " ") +
            out;
    return out;
  });
}

TEST(Answers, Grid) {
  expect_answers("grid", [](const std::string& prompt) {
    auto times = [&](const char* word) { return int(matches(prompt, word).size()); };
    auto numbers = matches(prompt, "\\d+");
    return cat(std::stoi(numbers[0]) + times("right") - times("left"), " ", std::stoi(numbers[1]) + times("up") - times("down"));
  });
}

TEST(Answers, Rewrite) {
  expect_answers("rewrite", [](const std::string& prompt) {
    auto text = behind_colon(prompt), before = text;
    do {
      before = text;
      for (const auto& rule : matches(prompt, "[abc] [abc] > [abc]"))
        if (text == before)
          text = std::regex_replace(text, std::regex(rule.substr(0, 3)), rule.substr(6), std::regex_constants::format_first_only);
    } while (text != before);
    return text;
  });
}

TEST(Answers, Calculator) {
  expect_answers("calculator", [](const std::string& prompt) {
    auto numbers = matches(prompt, "\\d+"), signs = matches(prompt, "[-+*]");
    auto value = std::stoll(numbers[0]);
    for (size_t i = 0; i < signs.size(); ++i) value = operate(value, signs[i], std::stoll(numbers[i + 1]));
    return std::to_string(value);
  });
}

TEST(Answers, OperandsInAnotherOrderAreInTheSameSplit) {
  std::map<std::string, Split> split_of_sum;
  for (auto* name : {"arithmetic", "calculator"})
    for (auto split : {Split::train, Split::test})
      for (uint64_t seed = 0; seed < 1200; ++seed) {
        auto prompt = family(name).task(split, 1, seed).messages.back().content;
        auto numbers = matches(prompt, "\\d+");
        auto sign = matches(prompt, "[-+*]")[0];
        if (sign != "-") std::sort(numbers.begin(), numbers.end());
        auto [same, added] = split_of_sum.emplace(numbers[0] + sign + numbers[1], split);
        EXPECT_EQ(same->second, split) << prompt;
      }
}

RC_GTEST_PROP(Operations, KeysForgetTheOrderWhereItDoesNotMatter, ()) {
  auto number = rc::gen::inRange<int64_t>(-50, 50);
  Operation one{*number, *rc::gen::elementOf(std::string(kSigns)), *number}, other{one.right, one.sign, one.left};
  RC_ASSERT((one.key() == other.key()) == (one.sign != '-' || one.left == one.right));
  auto read = operation_of(one.key());
  RC_ASSERT(read && (read->value() == one.value()));
}

double countdown_score(const std::string& answer) {
  Task task;
  task.data = {{"given", {{"numbers", {3, 3, 8, 8, 24}}, {"target", 24}}}};
  auto episode = family("countdown").begin(task);
  episode->answer({Role::assistant, answer});
  return episode->score();
}

TEST(Verifiers, CountdownTakesEveryExpressionOfTheNumbers) {
  for (auto* right : {"24", "8*3", " ( 3 ) * 8 ", "8/(3-8/3)", "24*8/8", "24-8+8", "((24))", "(24/8-3+8)*3"})
    EXPECT_EQ(countdown_score(right), 1) << right;
  for (auto* wrong : {"",
                      "23",
                      "3*3+8+8",
                      "8*3+0",
                      "8*8-24-8-8",
                      "3*8=24",
                      "8*3)",
                      "(8*3",
                      "8 3",
                      "24/(3-3)",
                      "8/(8/(3-3))+24",
                      "+24",
                      "--24",
                      "24.0",
                      "8**3",
                      "8*",
                      "()",
                      "2 4",
                      "24 =",
                      "48/2",
                      "99999999999999999999",
                      "twenty-four"})
    EXPECT_EQ(countdown_score(wrong), 0) << wrong;
  EXPECT_EQ(countdown_score(std::string(90, '(') + "24" + std::string(90, ')')), 1);
  EXPECT_EQ(countdown_score(std::string(1000, '(') + "24" + std::string(1000, ')')), 0) << "too long";
}

std::string call(const std::string& name, const std::string& tool, const std::string& parameter, const std::string& argument) {
  auto episode = family(name).begin(family(name).task(Split::train, 2, 5));
  return episode->call({tool, dump_python_json(Json{{parameter, argument}}), ""});
}

TEST(Tools, TheCalculatorDoesOneOperation) {
  for (auto [expression, result] :
       std::vector<std::pair<const char*, const char*>>{{"12*34", "408"},
                                                        {" 12 + 34 ", "46"},
                                                        {"-7-8", "-15"},
                                                        {"5 - -3", "8"},
                                                        {"999999999*-999999999", "-999999998000000001"}})
    EXPECT_EQ(call("calculator", "calculator", "expression", expression), result);
  for (auto* expression : {"", "1", "1+", "+1", "1+2+3", "(1+2)", "1/2", "1 2", "1.5+2", "1000000000+1", "99999999999999999999+1",
                           "-9223372036854775808+1", "a+b", "1+2="})
    EXPECT_EQ(call("calculator", "calculator", "expression", expression), "error: expected one operation, as 12*34")
        << expression;
}

TEST(Tools, EveryNameHasARecordOfTheTasksBook) {
  std::map<std::string, int> records;
  auto one = family("lookup2").task(Split::fresh, 3, 1), other = family("lookup2").task(Split::fresh, 3, 2);
  int differ = 0;
  RandomStream random(1, "names");
  for (int i = 0; i < 100; ++i) {
    ToolCall asks{"lookup", dump_python_json(Json{{"name", i ? made_up_word(false, random) : "No \"name\" é\n"}}), ""};
    auto result = family("lookup2").begin(one)->call(asks);
    EXPECT_EQ(result, family("lookup2").begin(one)->call(asks));
    differ += result != family("lookup2").begin(other)->call(asks);
    auto record = parse_json(result, "record");
    EXPECT_EQ(record.size(), 4u) << result;
    EXPECT_TRUE(is_fresh(record["friend"].get<std::string>())) << result;
    ++records[record["colour"].get<std::string>()];
  }
  EXPECT_EQ(records.size(), 8u);
  EXPECT_GT(differ, 95);
}

TEST(Tools, Lookup2TakesTheFriendsRecordToAnswer) {
  auto task = family("lookup2").task(Split::train, 1, 1);
  auto conversation = demonstrate(family("lookup2"), task, Strategy::right);
  ASSERT_EQ(conversation.size(), 7u);
  auto question = conversation[1].content;
  auto name = parse_json(conversation[2].tool_calls.at(0).arguments, "call")["name"].get<std::string>();
  EXPECT_EQ(question, "What is the colour of the friend of " + name + "?");
  auto friends = parse_json(conversation[3].content, "result")["friend"];
  EXPECT_EQ(parse_json(conversation[4].tool_calls.at(0).arguments, "call")["name"], friends);
  EXPECT_EQ(parse_json(conversation[5].content, "result")["colour"], conversation[6].content);
}

TEST(Guess, TheUserSaysWhereTheNumberIsUntilGuessesAreUsedUp) {
  Task task;
  task.data = {{"low", 17}, {"high", 23}, {"secret", 21}, {"guesses", 3}};
  auto say = [](Episode& episode, const std::string& text) {
    return episode.answer({Role::assistant, text}).value_or(cat("end: ", episode.score()));
  };
  auto right = family("guess").begin(task), wrong = family("guess").begin(task);
  EXPECT_EQ(say(*right, "20"), "higher");
  EXPECT_EQ(say(*right, " 22\n"), "lower");
  EXPECT_EQ(say(*right, "21"), "end: 1");
  EXPECT_EQ(say(*wrong, "is it 21?"), "a number, please");
  EXPECT_EQ(say(*wrong, "99999999999999999999"), "a number, please");
  EXPECT_EQ(say(*wrong, "-21"), "end: 0");
}

}  // namespace
}  // namespace fulgur
