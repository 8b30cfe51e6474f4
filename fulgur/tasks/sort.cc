// Sort: 42 7 93 15  ->  7 15 42 93
#include <algorithm>

#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

std::string text_of(const std::vector<int64_t>& items, bool letters) {
  std::vector<std::string> parts;
  for (auto item : items) parts.push_back(letters ? std::string(1, char('a' + item)) : std::to_string(item));
  return joined(parts, " ");
}

class Sort : public QuestionFamily {
 public:
  std::string name() const override { return "sort"; }
  std::string summary() const override { return "letters or numbers in order"; }
  int64_t hardest() const override { return 6; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    bool letters = random.below(2);
    std::vector<int64_t> items;
    for (int64_t i = 0; i < 2 * difficulty + 2; ++i) items.push_back(between(random, 0, letters ? 25 : 99));
    auto sorted = items, once = items;
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 1; i < once.size(); ++i)
      if (once[i] < once[i - 1]) std::swap(once[i], once[i - 1]);
    Question out;
    out.key = out.answer = text_of(sorted, letters);  // no order of the same items is in another split
    out.prompt = "Sort: " + text_of(items, letters);
    out.thought = "From " + text_of({sorted.front()}, letters) + " to " + text_of({sorted.back()}, letters) + ".";
    out.hasty = text_of(once, letters);  // one pass of bubble sort
    return out;
  }
};

FULGUR_FAMILY(Sort);

}  // namespace
}  // namespace fulgur
