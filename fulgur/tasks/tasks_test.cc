// What every family promises.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <regex>
#include <set>
#include <sstream>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/python_json.h"
#include "fulgur/tasks/drills.h"
#include "fulgur/tasks/prompt_form.h"
#include "fulgur/tasks/task.h"

namespace fulgur {
namespace {

constexpr Split kSplits[] = {Split::train, Split::test, Split::fresh};

std::string error_of(const std::function<void()>& what) {
  try {
    what();
    return "no error";
  } catch (const InputError& error) {
    return error.what();
  }
}

std::string prompt_of(const Task& task) { return task.messages.back().content; }

// Everything a task is.
std::string print(const Task& task) {
  auto out = cat(task.family, "\n", task.key, "\n", dump_python_json(task.data));
  for (const auto& message : task.messages) {
    out += cat("\n", role_name(message.role), ": ", message.content);
    for (const auto& tool : message.tools) out += dump_python_json(tool);
  }
  return out;
}

// What a conversation is worth, played again; it must meet what it met.
double score_of(const Family& family, const Task& task, const std::vector<Message>& conversation) {
  auto episode = family.begin(task);
  EXPECT_EQ(episode->score(), 0) << "before anything was said";
  std::optional<std::string> reply = "";
  for (size_t i = task.messages.size(); i < conversation.size();) {
    EXPECT_TRUE(reply) << "the episode has ended";
    const auto& message = conversation[i++];
    EXPECT_EQ(message.role, Role::assistant);
    for (const auto& call : message.tool_calls) EXPECT_EQ(episode->call(call), conversation.at(i++).content);
    if (!message.tool_calls.empty()) continue;
    reply = episode->answer(message);
    if (reply) {
      EXPECT_EQ(*reply, conversation.at(i++).content);
    }
  }
  EXPECT_FALSE(reply) << "the episode has not ended";
  return episode->score();
}

double score_of(const Family& family, const Task& task, Strategy strategy) {
  return score_of(family, task, demonstrate(family, task, strategy));
}

// Of 100 tasks, how many the hasty script gets right.
double hasty_successes(const std::string& name, int64_t difficulty) {
  double out = 0;
  for (uint64_t seed = 0; seed < 100; ++seed)
    out += score_of(family(name), family(name).task(Split::train, difficulty, seed), Strategy::hasty);
  return out;
}

TEST(Families, AreAllHereByName) {
  std::vector<std::string> names;
  for (auto* family : families()) {
    names.push_back(family->name());
    EXPECT_EQ(&fulgur::family(family->name()), family);
    EXPECT_FALSE(family->summary().empty());
  }
  EXPECT_EQ(names, (std::vector<std::string>{"arithmetic", "brackets", "calculator", "count", "countdown", "grid", "guess",
                                             "lookup", "lookup2", "modular", "reverse", "rewrite", "sort"}));
  EXPECT_EQ(error_of([] { family("chess"); }),
            "[tasks] expected one of the families arithmetic, brackets, calculator, count, countdown, grid, guess, lookup, "
            "lookup2, modular, reverse, rewrite, sort, or a file of tasks (.jsonl), got chess");
}

TEST(Families, TheRightScriptScoresOneAndTheHastyOneNoMore) {
  for (auto* family : families())
    for (auto split : kSplits)
      for (int64_t difficulty = 1; difficulty <= family->hardest(); ++difficulty)
        for (uint64_t seed = 0; seed < 20; ++seed) {
          auto task = family->task(split, difficulty, seed);
          EXPECT_EQ(score_of(*family, task, Strategy::right), 1) << print(task);
          auto hasty = score_of(*family, task, Strategy::hasty);
          EXPECT_TRUE(hasty == 0 || hasty == 1) << print(task);
        }
}

TEST(Families, TheHastyScriptMostlyFails) {
  for (auto [name, difficulty, most] : std::vector<std::tuple<const char*, int64_t, double>>{{"lookup2", 1, 30},
                                                                                             {"lookup2", 3, 30},
                                                                                             {"calculator", 2, 5},
                                                                                             {"calculator", 3, 5},
                                                                                             {"guess", 4, 20},
                                                                                             {"reverse", 1, 10},
                                                                                             {"arithmetic", 1, 25},
                                                                                             {"rewrite", 6, 10},
                                                                                             {"grid", 4, 30},
                                                                                             {"brackets", 1, 0},
                                                                                             {"modular", 1, 30},
                                                                                             {"countdown", 3, 20},
                                                                                             {"count", 8, 50},
                                                                                             {"sort", 3, 20}})
    EXPECT_LE(hasty_successes(name, difficulty), most) << name << " " << difficulty;
  for (auto* name : {"lookup", "calculator"}) EXPECT_EQ(hasty_successes(name, 1), 100) << name << ": one call is all it takes";
}

RC_GTEST_PROP(Families, AnySeedGivesATaskOfItsSplitThatTheScriptSolves, ()) {
  const auto& family = *families()[*rc::gen::inRange<size_t>(0, families().size())];
  auto split = kSplits[*rc::gen::inRange(0, 3)];
  auto task = family.task(split, *rc::gen::inRange<int64_t>(1, family.hardest() + 1), *rc::gen::arbitrary<uint64_t>());
  RC_ASSERT(task.family == family.name());
  RC_ASSERT(split_of(task.key) == (split == Split::train ? Split::train : Split::test));
  RC_ASSERT(score_of(family, task, Strategy::right) == 1);
}

TEST(Splits, HaveNoKeyAndNoPromptInCommon) {
  for (auto* family : families())
    for (int64_t difficulty : {int64_t(1), family->hardest()}) {
      std::set<std::string> keys[2], prompts[2];
      for (uint64_t seed = 0; seed < 600; ++seed)
        for (auto split : kSplits) {
          auto task = family->task(split, difficulty, seed);
          keys[split != Split::train].insert(task.key);
          prompts[split != Split::train].insert(prompt_of(task));
        }
      for (auto* sets : {keys, prompts}) {
        std::vector<std::string> both;
        std::set_intersection(sets[0].begin(), sets[0].end(), sets[1].begin(), sets[1].end(), std::back_inserter(both));
        EXPECT_TRUE(both.empty()) << family->name() << ": " << both[0];
        EXPECT_GT(sets[0].size(), 500u) << family->name() << " " << difficulty << ": few tasks to learn from";
        EXPECT_GT(sets[1].size(), 200u) << family->name() << " " << difficulty << ": few tasks to test with";
      }
    }
}

TEST(Splits, OneKeyInEightIsTestAndOneNameInEightIsFreshWhateverItsSplit) {
  int test = 0, fresh = 0, both = 0;
  for (int i = 0; i < 64000; ++i) {
    auto key = cat("key ", i);
    bool a = split_of(key) == Split::test, b = is_fresh(key);
    test += a, fresh += b, both += a && b;
  }
  EXPECT_NEAR(test, 8000, 400);
  EXPECT_NEAR(fresh, 8000, 400);
  EXPECT_NEAR(both, 1000, 150);
}

TEST(Splits, AreTheSameOnEveryMachine) {
  std::string splits, names;
  for (auto* key : {"a", "b", "mira", "123 + 456", "", "\xff", "from 17 to 23", "x y z", "solu", "Reverse"}) {
    splits += split_of(key) == Split::test ? 't' : '.';
    names += is_fresh(key) ? 'f' : '.';
  }
  EXPECT_EQ(splits + " " + names, "t.t....... .........f");
}

// All made-up names of a conversation: asked, looked up, and in records.
void add_names(const std::vector<Message>& conversation, std::set<std::string>& names) {
  auto question = conversation.at(1).content;
  auto begin = question.rfind(' ') + 1;
  names.insert(question.substr(begin, question.size() - 1 - begin));
  for (const auto& message : conversation) {
    for (const auto& call : message.tool_calls) names.insert(parse_json(call.arguments, "call")["name"].get<std::string>());
    if (message.role != Role::tool) continue;
    auto record = parse_json(message.content, "result");
    if (record.contains("friend")) names.insert(record["friend"].get<std::string>());
  }
}

TEST(Splits, FreshTasksHaveNoNameOfTheOthers) {
  std::set<std::string> fresh, others;
  for (auto* name : {"lookup", "lookup2"})
    for (int64_t difficulty : {1, 3})
      for (uint64_t seed = 0; seed < 500; ++seed)
        for (auto split : kSplits) {
          auto task = family(name).task(split, difficulty, seed);
          for (auto strategy : {Strategy::right, Strategy::hasty})
            add_names(demonstrate(family(name), task, strategy), split == Split::fresh ? fresh : others);
        }
  for (const auto& name : fresh) EXPECT_TRUE(is_fresh(name)) << name;
  for (const auto& name : others) EXPECT_FALSE(is_fresh(name)) << name;
  for (const auto& name : fresh) EXPECT_TRUE(std::regex_match(name, std::regex("[a-z][0-9][a-z][0-9]"))) << name;
  EXPECT_GT(fresh.size(), 1500u);
  EXPECT_GT(others.size(), 3000u);
}

TEST(Drills, HaveNoNameOfFreshTasksAndSayThingsTwice) {
  RandomStream random(1, "drills");
  const std::regex id("[a-z][0-9][a-z][0-9]");
  auto words_of = [](std::string text) {
    for (char& c : text)
      if (!std::isalnum(static_cast<unsigned char>(c))) c = ' ';
    std::istringstream in(text);
    return std::vector<std::string>{std::istream_iterator<std::string>(in), {}};
  };
  for (int i = 0; i < 2000; ++i) {
    auto line = repeated_line(random);
    auto first = line.substr(0, line.find('\n') + 1);
    EXPECT_TRUE(line == first + first + first || line == first + first + first + first) << line;
    auto text = drill(random);
    std::map<std::string, int> seen;
    for (const auto& word : words_of(text)) {
      ++seen[word];
      EXPECT_FALSE(std::regex_match(word, id) && is_fresh(word)) << text;
    }
    EXPECT_TRUE(std::any_of(seen.begin(), seen.end(), [](const auto& entry) { return entry.second > 1; })) << text;
  }
}

TEST(Tasks, AreAFunctionOfTheirNumbers) {
  for (auto* family : families())
    for (auto split : kSplits) {
      std::set<std::string> prompts;
      for (uint64_t seed = 0; seed < 100; ++seed) {
        auto task = family->task(split, 1, seed);
        EXPECT_EQ(print(task), print(family->task(split, 1, seed)));
        prompts.insert(prompt_of(task));
      }
      EXPECT_GT(prompts.size(), 80u) << family->name() << ": seeds must matter";
    }
}

TEST(Forms, StandBeforeWhatATaskSaysAndFitItsTools) {
  for (auto* family : families()) {
    auto task = family->task(Split::train, 1, 1);
    bool tools = !task.messages[0].tools.empty();
    EXPECT_EQ(print(in_form(PromptForm::plain, task)), print(task));
    for (auto form : prompt_forms("reasoning,agent,combined")) {
      EXPECT_EQ(suits(form, task), tools == (form != PromptForm::reasoning)) << family->name();
      if (!suits(form, task)) {
        EXPECT_NE(error_of([&] { in_form(form, task); }).find(family->name()), std::string::npos);
        continue;
      }
      auto put = in_form(form, task);
      EXPECT_EQ(put.messages[0].role, Role::system);
      EXPECT_EQ(put.messages[0].tools, task.messages[0].tools);
      EXPECT_EQ(put.messages.back().content, task.messages.back().content);
      EXPECT_GT(put.messages[0].content.size(), 60u);
      auto conversation = demonstrate(*family, put, Strategy::right);
      for (const auto& message : conversation)
        EXPECT_FALSE(message.role == Role::assistant && message.reasoning_content.empty()) << family->name();
    }
  }
  EXPECT_EQ(mode_of(PromptForm::agent, ThinkingMode::thinking), ThinkingMode::chat);
  EXPECT_EQ(mode_of(PromptForm::combined), ThinkingMode::thinking);
  for (auto* names : {"", "plain,", "verse"})
    EXPECT_NE(error_of([&] { prompt_forms(names); }).find("expected plain"), std::string::npos);
}

// Measurements name tasks by their seeds: whoever changes a draw makes them stale, and this test fails.
TEST(Tasks, AreThoseThatMeasurementsName) {
  for (auto [name, prompt, answer] : std::vector<std::array<const char*, 3>>{
           {"arithmetic", "8721 + 2178 = ?", "10899"},
           {"brackets", "Close: ( ) ( { { [ ] [ { }", "] } } )"},
           {"calculator", "What is (775-602)-62?", "111"},
           {"count", "Count f: a e f e c d f e d e", "2"},
           {"countdown", "Make 55 of 11 15 3 2 with + - * /, each once at most.", "((15+11)*2)+3"},
           {"grid", "Start at 6 7. Go down, left, down, up, left, left, left. Where?", "2 6"},
           {"guess", "Guess my number from 114 to 126. You have 4 guesses.", "117"},
           {"lookup", "What is the pet of j5i5?", "bird"},
           {"lookup2", "What is the colour of the friend of l7w5?", "gold"},
           {"modular", "(705 * 310) mod 40 = ?", "30"},
           {"reverse", "Reverse: x g w c e j", "j e c w g x"},
           {"rewrite", "Rules: b b > b, b c > b, b a > c. Rewrite, first rule first: a c b b b c b b", "a c b"},
           {"sort", "Sort: 30 89 73 98 53 77", "30 53 73 77 89 98"}}) {
    auto task = family(name).task(Split::train, 2, 7);
    EXPECT_EQ(prompt_of(task), prompt) << name;
    EXPECT_EQ(demonstrate(family(name), task, Strategy::right).back().content, answer) << name;
  }
}

TEST(Tasks, RefuseADifficultyOutOfRange) {
  for (auto* family : families())
    for (int64_t difficulty : {int64_t(-1), int64_t(0), family->hardest() + 1})
      EXPECT_EQ(error_of([&] { family->task(Split::train, difficulty, 1); }),
                cat("[tasks] ", family->name(), ": expected a difficulty from 1 to ", family->hardest(), ", got ", difficulty));
}

const std::vector<std::string> kGarbage{"",
                                        " \n",
                                        "?",
                                        "\xff\xfe",
                                        std::string("\0", 1),
                                        std::string(1 << 20, '('),
                                        std::string(1 << 16, '9'),
                                        "{\"answer\": 1}",
                                        "the answer is 42 or so"};

TEST(Episodes, GarbageScoresZeroAndEnds) {
  for (auto* family : families())
    for (const auto& garbage : kGarbage) {
      auto episode = family->begin(family->task(Split::train, 1, 3));
      int answers = 1;
      while (episode->answer({Role::assistant, garbage})) EXPECT_LE(++answers, 10) << family->name();
      EXPECT_EQ(episode->score(), 0) << family->name() << ": " << garbage.substr(0, 20);
    }
}

TEST(Episodes, CallsThatDoNotFitGetAnErrorAndScoreZero) {
  auto arguments = kGarbage;
  for (auto* text : {"[]", "[\"mira\"]", "\"mira\"", "null", "3", "{}", "{\"name\": 3, \"expression\": 3}", "{\"nam\": \"mira\"}",
                     "{\"name\": \"mira\"", "{\"name\": [\"mira\"], \"expression\": {}}", "{\"name\": \"\\ud800\"}", "1e999",
                     "{\"expression\": \"1+2+3\"} "})
    arguments.push_back(text);
  arguments.push_back(std::string(1000, '[') + std::string(1000, ']'));
  for (auto* family : families()) {
    auto task = family->task(Split::train, 1, 3);
    auto episode = family->begin(task);
    for (const auto& text : arguments)
      for (auto* tool : {"lookup", "calculator", "", "rm", "Lookup"}) {
        bool known = (family->name().starts_with("lookup") && std::string(tool) == "lookup") ||
                     (family->name() == "calculator" && std::string(tool) == "calculator");
        auto result = episode->call({tool, text, ""});
        EXPECT_EQ(result.find(known ? "error: expected" : cat("error: no tool named ", tool)), 0u)
            << result << text.substr(0, 50);
        EXPECT_EQ(episode->score(), 0);
      }
    auto rest = family->solve(task, task.messages, Strategy::right);  // errors do no harm
    if (rest.tool_calls.empty()) continue;
    EXPECT_NE(episode->call(rest.tool_calls[0]).find("error"), 0u);
    EXPECT_EQ(episode->score(), 0) << "calls are not an answer";
  }
}

RC_GTEST_PROP(Episodes, NoBytesThrow, ()) {
  const auto& family = *families()[*rc::gen::inRange<size_t>(0, families().size())];
  auto episode = family.begin(family.task(Split::train, 1, *rc::gen::inRange<uint64_t>(0, 100)));
  auto text = rc::gen::container<std::string>(
      rc::gen::oneOf(rc::gen::arbitrary<char>(), rc::gen::elementOf(std::string("0123456789+-*/() {}[]\":"))));
  for (auto* tool : {"lookup", "calculator"}) {
    episode->call({tool, *text, ""});
    auto argument = dump_python_json(*rc::gen::container<std::string>(rc::gen::elementOf(std::string("0123456789+-* ()"))));
    episode->call({tool, cat("{\"name\": ", argument, ", \"expression\": ", argument, "}"), ""});
  }
  for (int i = 0; i < 10 && episode->answer({Role::assistant, *text}); ++i) continue;
  RC_ASSERT((episode->score() == 0 || episode->score() == 1));
}

TEST(Episodes, TheAnswerCountsNotTheWhiteSpaceAroundIt) {
  auto task = family("reverse").task(Split::train, 1, 1);
  auto answer = demonstrate(family("reverse"), task, Strategy::right).back().content;
  for (auto [text, score] : std::vector<std::pair<std::string, double>>{
           {answer, 1}, {"\n " + answer + " \t\r\n", 1}, {answer + ".", 0}, {"x" + answer, 0}}) {
    auto episode = family("reverse").begin(task);
    EXPECT_FALSE(episode->answer({Role::assistant, text}));
    EXPECT_EQ(episode->score(), score) << text;
  }
}

class OwnTasks : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::create_directories(folder_); }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::unique_ptr<const Family> read(const std::string& text) {
    write_file_atomic(path_, text);
    return read_family(path_);
  }

  std::filesystem::path folder_ = std::filesystem::temp_directory_path() / cat("fulgur-tasks-", getpid());
  std::string path_ = folder_ / "capitals.jsonl";
};

TEST_F(OwnTasks, AreSplitAndVerifiedLikeTheOthers) {
  std::string text;
  for (int i = 0; i < 200; ++i)
    text += cat(R"({"prompt": "Capital of )", i, R"(?", "answer": " City )", i, R"( ", "more": 1})", "\n");
  auto family = read("\n" + text + " \n");
  EXPECT_EQ(family->name(), path_);
  EXPECT_EQ(family->summary(), "200 questions of a file");
  std::set<std::string> prompts[3];
  for (auto split : kSplits)
    for (uint64_t seed = 0; seed < 2000; ++seed) {
      auto task = family->task(split, 1, seed);
      prompts[int(split)].insert(prompt_of(task));
      EXPECT_EQ(score_of(*family, task, Strategy::right), 1);
      EXPECT_EQ(score_of(*family, task, Strategy::hasty), 0);
    }
  EXPECT_EQ(prompts[0].size() + prompts[1].size(), 200u) << "each is in one split";
  EXPECT_GT(prompts[1].size(), 10u);
  EXPECT_EQ(prompts[1], prompts[2]) << "fresh is test";
  EXPECT_EQ(demonstrate(*family, family->task(Split::train, 1, 0), Strategy::right).back().content.find("City "), 0u);
}

TEST_F(OwnTasks, ErrorsNameTheLineAndTheField) {
  const std::string good = R"({"prompt": "1+1?", "answer": "2"})";
  for (auto [line, expected] : std::vector<std::pair<const char*, const char*>>{
           {R"({"prompt": "x"})", R"(:3: field "answer": expected a text, got null)"},
           {R"({"prompt": 3, "answer": "x"})", R"(:3: field "prompt": expected a text, got 3)"},
           {R"({"prompt": "x", "answer": " "})", R"(:3: field "answer": expected a text, got " ")"},
           {R"(["x", "y"])", R"(:3: field "prompt": expected a text, got null)"},
           {R"({"prompt": )", ":3: expected JSON, got an error at byte"}}) {
    auto error = error_of([&] { read(good + "\n\n" + line + "\n" + good); });
    EXPECT_NE(error.find(path_ + expected), std::string::npos) << error;
  }
  EXPECT_EQ(error_of([&] { read("\n"); }), cat("[tasks] ", path_, ": expected a question a line, got an empty file"));
  EXPECT_NE(error_of([&] { read_family("/nowhere.jsonl"); }).find("/nowhere.jsonl"), std::string::npos);
}

TEST_F(OwnTasks, SayHowTheyAreVerified) {
  auto family = read(R"({"prompt": "2+2", "answer": 4, "verify": "number"})");
  bool train = split_of("2+2") == Split::train;
  auto task = family->task(train ? Split::train : Split::test, 1, 1);
  EXPECT_EQ(task.data["given"], Json({{"verify", "number"}, {"answer", 4}}));
  for (auto [line, says] : std::vector<std::pair<std::string, std::string>>{
           {R"({"prompt": "a", "answer": "4", "verify": "number"})", R"(field "answer": expected a number, got "4")"},
           {R"({"prompt": "a", "answer": 4, "verify": "regex"})", R"(expected a pattern, got 4)"},
           {R"({"prompt": "a", "answer": [], "verify": "rubric"})", R"(expected a list of texts)"},
           {R"({"prompt": "a", "answer": ["b", {"text": "c", "weight": 0}], "verify": "rubric"})", R"(expected a list of texts)"},
           {R"({"prompt": "a", "answer": 4, "verify": "schema"})", R"(expected a JSON Schema)"},
           {R"({"prompt": "a", "answer": 4, "verify": "luck"})",
            R"(expected exact, number, regex, schema or rubric, got "luck")"}}) {
    auto error = error_of([&, line = line] { read(line); });
    EXPECT_NE(error.find(says), std::string::npos) << error;
  }
  write_file_atomic(path_, R"({"prompt": "1+1", "answer": "2"})");
  EXPECT_EQ(&fulgur::family(path_), &fulgur::family(path_)) << "read once";
}

TEST_F(OwnTasks, OfOneLineHaveOneSplit) {
  auto family = read(R"({"prompt": "1+1?", "answer": "2"})");
  bool train = split_of("1+1?") == Split::train;
  EXPECT_EQ(family->task(train ? Split::train : Split::test, 1, 1).key, "1+1?");
  EXPECT_NE(error_of([&] { family->task(train ? Split::test : Split::train, 1, 1); }).find("got none in 1000 draws"),
            std::string::npos);
}

}  // namespace
}  // namespace fulgur
