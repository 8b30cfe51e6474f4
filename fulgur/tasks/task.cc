#include "fulgur/tasks/task.h"

#include <algorithm>
#include <filesystem>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/base/python_json.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

constexpr uint64_t kOneIn = 8;  // is test, is fresh
constexpr int kTries = 1000;    // that all miss a split of one in eight: once in 1e58

// FNV-1a, 64 bits.
uint64_t hash_of(const std::string& bytes) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001b3ull;
  return hash;
}

struct Registry {
  std::vector<std::unique_ptr<const Family>> owned;
  std::vector<const Family*> by_name;
};

// Inside a function: it must exist before the first family's file is initialised.
Registry& registry() {
  static Registry families;
  return families;
}

std::string names_of_families() {
  std::vector<std::string> names;
  for (auto* family : families()) names.push_back(family->name());
  return joined(names, ", ");
}

// What "answer" must be for each way to verify one (rl/rewards/verifier.h).
Json answer_field(const Json& line, const std::string& verify, const std::string& where) {
  Json value = line.contains("answer") ? line["answer"] : Json();
  bool fits = verify == "number"   ? value.is_number()
              : verify == "schema" ? value.is_object() || value.is_boolean()
              : verify == "rubric" ? value.is_array() && !value.empty()
                                   : value.is_string();
  if (verify == "rubric" && fits)
    for (const auto& item : value)
      fits &= item.is_string() || (item.is_object() && item.contains("text") && item["text"].is_string() &&
                                   (!item.contains("weight") || (item["weight"].is_number() && item["weight"] > 0)));
  FULGUR_CHECK(fits, "[tasks] ", where, ": field \"answer\": expected ",
               verify == "number"   ? "a number"
               : verify == "schema" ? "a JSON Schema"
               : verify == "rubric" ? "a list of texts, or of {\"text\", \"weight\"}"
                                    : "a pattern",
               ", got ", dump_python_json(value).substr(0, 100));
  return value;
}

std::string text_field(const Json& line, const char* field, const std::string& where) {
  Json value = line.is_object() && line.contains(field) ? line[field] : Json();
  FULGUR_CHECK(value.is_string() && !trimmed(value.get<std::string>()).empty(), "[tasks] ", where, ": field \"", field,
               "\": expected a text, got ", dump_python_json(value).substr(0, 100));
  return trimmed(value.get<std::string>());
}

class FileFamily : public QuestionFamily {
 public:
  explicit FileFamily(const std::filesystem::path& path) : name_(path.string()) {
    auto text = read_file(path);
    for (size_t begin = 0, line = 1; begin < text.size(); ++line) {
      auto end = std::min(text.find('\n', begin), text.size());
      if (auto json = trimmed(text.substr(begin, end - begin)); !json.empty()) add(json, cat(path.string(), ":", line));
      begin = end + 1;
    }
    FULGUR_CHECK(!questions_.empty(), "[tasks] ", path.string(), ": expected a question a line, got an empty file");
  }
  std::string name() const override { return name_; }
  std::string summary() const override { return cat(questions_.size(), " questions of a file"); }
  int64_t hardest() const override { return 1; }

 protected:
  Question ask(int64_t, RandomStream& random) const override { return pick(questions_, random); }

 private:
  void add(const std::string& text, const std::string& where) {
    auto line = parse_json(text, where);
    Question question;
    question.key = question.prompt = text_field(line, "prompt", where);
    auto verify = line.value("verify", Json("exact"));
    bool known = verify == "exact" || verify == "number" || verify == "regex" || verify == "schema" || verify == "rubric";
    FULGUR_CHECK(known, "[tasks] ", where, ": field \"verify\": expected exact, number, regex, schema or rubric, got ",
                 dump_python_json(verify).substr(0, 100));
    if (verify == "exact") {
      question.answer = text_field(line, "answer", where);
    } else {
      auto expected = answer_field(line, verify, where);
      question.answer = dump_python_json(expected), question.given = {{"verify", verify}, {"answer", expected}};
    }
    questions_.push_back(question);
  }

  std::string name_;
  std::vector<Question> questions_;
};

}  // namespace

const char* split_name(Split split) { return split == Split::train ? "train" : split == Split::test ? "test" : "fresh"; }

Split split_of(const std::string& key) { return mix(hash_of(key)) % kOneIn ? Split::train : Split::test; }

bool is_fresh(const std::string& name) { return mix(~hash_of(name)) % kOneIn == 0; }

std::string Episode::call(const ToolCall& call) { return "error: no tool named " + call.name; }

Task Family::task(Split split, int64_t difficulty, uint64_t seed) const {
  FULGUR_CHECK(difficulty >= 1 && difficulty <= hardest(), "[tasks] ", name(), ": expected a difficulty from 1 to ", hardest(),
               ", got ", difficulty);
  auto wanted = split == Split::train ? Split::train : Split::test;
  RandomStream random(seed, cat(name(), " ", difficulty));
  for (int i = 0; i < kTries; ++i) {
    auto task = draw(difficulty, split == Split::fresh, random);
    task.family = name();
    if (split_of(task.key) == wanted) return task;
  }
  throw InputError(
      cat("[tasks] ", name(), ": expected a task of the split ", split_name(wanted), ", got none in ", kTries, " draws"),
      "of few tasks, a split may get none");
}

const std::vector<const Family*>& families() { return registry().by_name; }

const Family& family(const std::string& name) {
  for (auto* family : families())
    if (family->name() == name) return *family;
  if (name.ends_with(".jsonl")) return register_family(read_family(name));
  throw InputError(
      cat("[tasks] expected one of the families ", names_of_families(), ", or a file of tasks (.jsonl), got ", name));
}

const Family& register_family(std::unique_ptr<const Family> family) {
  auto& [owned, by_name] = registry();
  by_name.push_back(family.get());
  owned.push_back(std::move(family));
  std::sort(by_name.begin(), by_name.end(), [](auto* a, auto* b) { return a->name() < b->name(); });
  return *owned.back();
}

std::vector<Message> demonstrate(const Family& family, const Task& task, Strategy strategy) {
  auto conversation = task.messages;
  auto episode = family.begin(task);
  for (;;) {
    auto message = family.solve(task, conversation, strategy);
    conversation.push_back(message);
    for (const auto& call : message.tool_calls) conversation.push_back({Role::tool, episode->call(call)});
    if (!message.tool_calls.empty()) continue;
    auto reply = episode->answer(message);
    if (!reply) return conversation;
    conversation.push_back({Role::user, *reply});
  }
}

std::unique_ptr<const Family> read_family(const std::string& path) { return std::make_unique<FileFamily>(path); }

}  // namespace fulgur
