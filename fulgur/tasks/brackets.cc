// Close: ( [ ] { <  ->  > } )
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

const std::string kOpening = "([{<", kClosing = ")]}>";

struct Draft {
  std::string text;
  std::string open;  // the last is to be closed first
};

Draft draw_draft(int64_t length, RandomStream& random) {
  Draft out;
  for (int64_t i = 0; i < length; ++i) {
    if (!out.open.empty() && random.uniform() < 0.4) {
      out.text += kClosing[kOpening.find(out.open.back())];
      out.open.pop_back();
    } else {
      out.text += pick(kOpening, random);
      out.open += out.text.back();
    }
  }
  return out;
}

class Brackets : public QuestionFamily {
 public:
  std::string name() const override { return "brackets"; }
  std::string summary() const override { return "close what is open, the innermost first"; }
  int64_t hardest() const override { return 8; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    auto draft = draw_draft(2 * difficulty + 6, random);
    while (draft.open.size() < 2) draft = draw_draft(2 * difficulty + 6, random);
    std::string closing;
    for (auto open = draft.open.rbegin(); open != draft.open.rend(); ++open) closing += kClosing[kOpening.find(*open)];
    Question out;
    out.key = draft.text;
    out.prompt = "Close: " + spaced(draft.text);
    out.answer = spaced(closing);
    out.thought = "Open: " + spaced(draft.open);
    out.hasty = spaced(closing.substr(0, closing.size() - 1));
    return out;
  }
};

FULGUR_FAMILY(Brackets);

}  // namespace
}  // namespace fulgur
