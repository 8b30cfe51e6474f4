// Reverse: x a k h  ->  h k a x
#include <algorithm>

#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

class Reverse : public QuestionFamily {
 public:
  std::string name() const override { return "reverse"; }
  std::string summary() const override { return "letters from the last to the first"; }
  int64_t hardest() const override { return 8; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    auto text = draw_letters("abcdefghijklmnopqrstuvwxyz", 2 * difficulty + 2, random);
    std::string back(text.rbegin(), text.rend());
    Question out;
    out.key = std::min(text, back);  // whoever knows the one knows the other
    out.prompt = "Reverse: " + spaced(text);
    out.answer = spaced(back);
    out.thought = std::string("From ") + back.front() + " to " + back.back() + ".";
    out.hasty = spaced(back.substr(0, back.size() / 2));
    return out;
  }
};

FULGUR_FAMILY(Reverse);

}  // namespace
}  // namespace fulgur
