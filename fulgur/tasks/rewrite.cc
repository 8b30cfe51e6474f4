// Rules: a b > c, c c > a. Rewrite, first rule first: a b c c  ->  a c      (a b c c, c c c, a c)
#include <algorithm>

#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

struct Rule {
  std::string from, to;  // to is shorter: rewriting ends
};

// The first rule that fits, at its first place. False: none fits.
bool rewrite_once(const std::vector<Rule>& rules, std::string& text) {
  for (const auto& rule : rules)
    if (auto at = text.find(rule.from); at != text.npos) {
      text.replace(at, rule.from.size(), rule.to);
      return true;
    }
  return false;
}

struct System {
  std::vector<Rule> rules;
  std::vector<std::string> texts;  // the first is given, the last is the answer
};

System draw_system(int64_t rules, int64_t length, RandomStream& random) {
  const std::string letters = "abc";
  System out;
  while (int64_t(out.rules.size()) < rules) {
    Rule rule{draw_letters(letters, 2, random), draw_letters(letters, 1, random)};
    auto same = [&](const Rule& other) { return other.from == rule.from; };
    if (std::none_of(out.rules.begin(), out.rules.end(), same)) out.rules.push_back(rule);
  }
  auto text = draw_letters(letters, length, random);
  out.texts.push_back(text);
  while (rewrite_once(out.rules, text)) out.texts.push_back(text);
  return out;
}

class Rewrite : public QuestionFamily {
 public:
  std::string name() const override { return "rewrite"; }
  std::string summary() const override { return "apply the first rule that fits, at its first place, until none fits"; }
  int64_t hardest() const override { return 6; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    System system;
    while (system.texts.size() < 3) system = draw_system(difficulty + 1, 2 * difficulty + 4, random);
    std::vector<std::string> rules, texts;
    for (const auto& rule : system.rules) rules.push_back(spaced(rule.from) + " > " + rule.to);
    for (const auto& text : system.texts) texts.push_back(spaced(text));
    Question out;
    out.prompt = "Rules: " + joined(rules, ", ") + ". Rewrite, first rule first: " + texts.front();
    out.key = out.prompt;
    out.answer = texts.back();
    out.thought = joined(texts, ", ");
    out.hasty = texts[1];
    return out;
  }
};

FULGUR_FAMILY(Rewrite);

}  // namespace
}  // namespace fulgur
