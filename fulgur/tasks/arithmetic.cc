// 347 + 125 = ?  ->  472
#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/numbers.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

// One digit of the right operand after the other: "347 + 100 = 447, 447 + 20 = 467, 467 + 5 = 472".
std::string steps_of(const Operation& whole) {
  std::vector<std::string> steps;
  auto add = [&](Operation step) { return steps.push_back(cat(step.text(), " = ", step.value())), step.value(); };
  auto digits = std::to_string(whole.right);
  int64_t total = whole.sign == '*' ? 0 : whole.left;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (digits[i] == '0') continue;
    auto part = std::stoll(digits[i] + std::string(digits.size() - 1 - i, '0'));
    if (whole.sign != '*') total = add({total, whole.sign, part});
    else if (auto product = add({whole.left, '*', part}); total) total = add({total, '+', product});
    else total = product;
  }
  return joined(steps, ", ");
}

class Arithmetic : public QuestionFamily {
 public:
  std::string name() const override { return "arithmetic"; }
  std::string summary() const override { return "sums, differences and products of numbers of 3 digits and more"; }
  int64_t hardest() const override { return 6; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    auto whole = draw_operation(difficulty + 2, random);
    Question out;
    out.key = whole.key();
    out.prompt = whole.text() + " = ?";
    out.answer = std::to_string(whole.value());
    out.thought = steps_of(whole);
    out.hasty = std::to_string(Operation{whole.left, whole.sign, whole.right - whole.right % 10}.value());
    return out;
  }
};

FULGUR_FAMILY(Arithmetic);

}  // namespace
}  // namespace fulgur
