// Count c: a c b c  ->  2
#include <algorithm>

#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

class Count : public QuestionFamily {
 public:
  std::string name() const override { return "count"; }
  std::string summary() const override { return "how often a letter stands in a text"; }
  int64_t hardest() const override { return 8; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    const std::string letters = "abcdef";
    auto text = draw_letters(letters, 2 * difficulty + 6, random);
    char letter = pick(letters, random);
    std::vector<std::string> marks;
    int64_t count = 0;
    for (char c : text) {
      marks.push_back(std::string(1, c));
      if (c == letter) marks.push_back(std::to_string(++count));
    }
    Question out;
    out.prompt = std::string("Count ") + letter + ": " + spaced(text);
    out.key = out.prompt;
    out.answer = std::to_string(count);
    out.thought = joined(marks, " ");
    out.hasty = std::to_string(std::count(text.begin(), text.begin() + int64_t(text.size() / 2), letter));
    return out;
  }
};

FULGUR_FAMILY(Count);

}  // namespace
}  // namespace fulgur
