#include "fulgur/tasks/records.h"

#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"
#include "fulgur/tasks/tool.h"

namespace fulgur {
namespace {

const Tool kLookup{"lookup", "The record of a name.", "name"};

struct Field {
  const char* name;
  const char* values[8];
};
constexpr Field kFields[] = {{"colour", {"red", "blue", "green", "black", "white", "brown", "pink", "gold"}},
                             {"pet", {"dog", "cat", "bird", "fish", "horse", "mouse", "snake", "frog"}},
                             {"fruit", {"apple", "pear", "plum", "grape", "lemon", "peach", "melon", "cherry"}}};

Json json_of(const RecordBook& book) {
  return {{"seed", book.seed}, {"fresh", book.fresh}, {"friends", book.friends}, {"fields", book.fields}};
}

RecordBook book_of(const Json& json) { return {json.at("seed"), json.at("fresh"), json.at("friends"), json.at("fields")}; }

class RecordEpisode : public AnswerEpisode {
 public:
  explicit RecordEpisode(const Task& task)
      : AnswerEpisode(task.data.at("answer").get<std::string>()),
        book_(book_of(task.data.at("book"))) {}
  std::string call(const ToolCall& call) override {
    if (call.name != kLookup.name) return Episode::call(call);
    auto name = kLookup.argument_of(call);
    return name ? dump_python_json(book_.record(*name)) : kLookup.complaint();
  }

 private:
  RecordBook book_;
};

}  // namespace

Json RecordBook::record(const std::string& name) const {
  RandomStream random(seed, name);
  Json out = Json::object();
  if (friends) out["friend"] = made_up_id(fresh, random);
  for (int64_t i = 0; i < fields; ++i) out[kFields[i].name] = pick(kFields[i].values, random);
  return out;
}

int64_t RecordFamily::hardest() const { return std::size(kFields); }

std::unique_ptr<Episode> RecordFamily::begin(const Task& task) const { return std::make_unique<RecordEpisode>(task); }

Message RecordFamily::solve(const Task& task, const std::vector<Message>& conversation, Strategy strategy) const {
  auto book = book_of(task.data.at("book"));
  std::string name = task.data.at("name"), field = task.data.at("field");
  auto wanted = strategy == Strategy::right ? calls() : 1, done = std::min(results_in(conversation), wanted);
  Json record;
  for (int64_t i = 0; i < done; ++i) {
    record = book.record(name);
    name = record.value("friend", "");
  }
  if (done < wanted) return kLookup.call(name, done ? "The friend is " + name + "." : "I look up " + name + ".");
  std::string value = record.at(field);
  return {Role::assistant, value, "The " + field + " is " + value + "."};
}

Task RecordFamily::draw(int64_t difficulty, bool fresh, RandomStream& random) const {
  RecordBook book{random.bits(), fresh, calls() > 1, difficulty};
  auto asked = made_up_id(fresh, random), last = asked;
  std::string field = kFields[random.below(uint64_t(difficulty))].name, friends;
  for (int64_t i = 1; i < calls(); ++i) {
    last = book.record(last).at("friend");
    friends += "the friend of ";
  }
  Task task;
  task.key = asked;  // no question about a name is in another split
  task.messages = kLookup.offer("What is the " + field + " of " + friends + asked + "?");
  task.data = {{"book", json_of(book)}, {"name", asked}, {"field", field}, {"answer", book.record(last).at(field)}};
  return task;
}

}  // namespace fulgur
