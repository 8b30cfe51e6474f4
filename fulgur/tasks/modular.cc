// (47 * 12) mod 7 = ?  ->  4
#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/numbers.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

class Modular : public QuestionFamily {
 public:
  std::string name() const override { return "modular"; }
  std::string summary() const override { return "the remainder, never negative, of a sum, difference or product"; }
  int64_t hardest() const override { return 4; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    auto inner = draw_operation(difficulty + 1, random);
    auto modulus = between(random, 3, 20 * difficulty), value = inner.value();
    auto rest = (value % modulus + modulus) % modulus, times = (value - rest) / modulus;
    Question out;
    out.key = cat(inner.key(), " mod ", modulus);
    out.prompt = cat("(", inner.text(), ") mod ", modulus, " = ?");
    out.answer = std::to_string(rest);
    out.thought = cat(inner.text(), " = ", value, " = ", times, " * ", modulus, " + ", rest);
    out.hasty = std::to_string(value);
    return out;
  }
};

FULGUR_FAMILY(Modular);

}  // namespace
}  // namespace fulgur
