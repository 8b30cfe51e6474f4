// Make 56 of 3 5 7 with + - * /, each once at most.  ->  (3+5)*7
#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/numbers.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

struct Fraction {
  int64_t top = 0, bottom = 0;  // bottom 0: no value

  bool operator==(int64_t whole) const { return bottom != 0 && top == whole * bottom; }
};

Fraction combine(Fraction a, char sign, Fraction b) {
  if (!a.bottom || !b.bottom) return {};
  if (sign == '*') return {a.top * b.top, a.bottom * b.bottom};
  if (sign == '/') return {a.top * b.bottom, a.bottom * b.top};
  return {a.top * b.bottom + (sign == '+' ? b.top : -b.top) * a.bottom, a.bottom * b.bottom};
}

// sum = product {(+|-) product};  product = factor {(*|/) factor};  factor = number | "(" sum ")"
// A number that is not among those left ends it, so values stay small enough to be exact.
class Expression {
 public:
  Expression(std::string_view text, std::vector<int64_t> numbers) : text_(text), left_(std::move(numbers)) {}
  Fraction value() {
    auto out = sum();
    return at_ == text_.size() ? out : Fraction{};
  }

 private:
  char next() {
    at_ = std::min(text_.find_first_not_of(' ', at_), text_.size());
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  Fraction sum() {
    auto out = product();
    while (next() == '+' || next() == '-') {
      char sign = text_[at_++];
      out = combine(out, sign, product());
    }
    return out;
  }
  Fraction product() {
    auto out = factor();
    while (next() == '*' || next() == '/') {
      char sign = text_[at_++];
      out = combine(out, sign, factor());
    }
    return out;
  }
  Fraction factor() {
    if (next() == '(') {
      ++at_;
      auto out = sum();
      if (next() != ')') return {};
      ++at_;
      return out;
    }
    auto end = std::min(text_.find_first_not_of("0123456789", at_), text_.size());
    auto number = whole_number(text_.substr(at_, end - at_));
    at_ = end;
    auto found = number ? std::find(left_.begin(), left_.end(), *number) : left_.end();
    if (found == left_.end()) return {};
    left_.erase(found);
    return {*number, 1};
  }

  std::string_view text_;
  std::vector<int64_t> left_;
  size_t at_ = 0;
};

class CountdownEpisode : public AnswerEpisode {
 public:
  CountdownEpisode(std::vector<int64_t> numbers, int64_t target)
      : AnswerEpisode(""),
        numbers_(std::move(numbers)),
        target_(target) {}

 protected:
  bool is_right(const std::string& answer) const override {
    constexpr size_t kLongest = 200;  // brackets inside each other recurse
    return answer.size() <= kLongest && Expression(answer, numbers_).value() == target_;
  }

 private:
  std::vector<int64_t> numbers_;
  int64_t target_;
};

struct Term {
  int64_t value;
  std::string text;
};

struct Puzzle {
  std::vector<int64_t> numbers;
  Term solution;
  std::vector<std::string> steps;
};

Term take(std::vector<Term>& terms, RandomStream& random) {
  std::swap(terms[random.below(terms.size())], terms.back());
  auto out = terms.back();
  terms.pop_back();
  return out;
}

// An expression of all numbers, whose value is the target: there is a solution.
Puzzle draw_puzzle(int64_t count, RandomStream& random) {
  Puzzle out;
  std::vector<Term> terms;
  for (int64_t i = 0; i < count; ++i) {
    auto number = out.numbers.emplace_back(between(random, 1, 25));
    terms.push_back({number, std::to_string(number)});
  }
  while (terms.size() > 1) {
    auto a = take(terms, random), b = take(terms, random);
    if (a.value < b.value) std::swap(a, b);
    Operation step{a.value, pick(kSigns, random), b.value};
    out.steps.push_back(cat(step.text(), " = ", step.value()));
    terms.push_back({step.value(), cat("(", a.text, step.sign, b.text, ")")});
  }
  auto& text = terms[0].text;
  out.solution = {terms[0].value, text.substr(1, text.size() - 2)};
  return out;
}

class Countdown : public QuestionFamily {
 public:
  std::string name() const override { return "countdown"; }
  std::string summary() const override { return "reach a target with some of the numbers"; }
  int64_t hardest() const override { return 3; }
  std::unique_ptr<Episode> begin(const Task& task) const override {
    const auto& given = task.data.at("given");
    return std::make_unique<CountdownEpisode>(given.at("numbers").get<std::vector<int64_t>>(), given.at("target").get<int64_t>());
  }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    auto puzzle = draw_puzzle(difficulty + 2, random);
    while (puzzle.solution.value < 1 || puzzle.solution.value > 999) puzzle = draw_puzzle(difficulty + 2, random);
    auto sorted = puzzle.numbers;
    std::sort(sorted.begin(), sorted.end());
    auto target = puzzle.solution.value;
    Question out;
    out.key = cat(target, " of ", text_of(sorted, " "));
    out.prompt = cat("Make ", target, " of ", text_of(puzzle.numbers, " "), " with + - * /, each once at most.");
    out.answer = puzzle.solution.text;
    out.thought = joined(puzzle.steps, ", ");
    out.hasty = text_of(puzzle.numbers, "+");
    out.given = {{"numbers", puzzle.numbers}, {"target", target}};
    return out;
  }

 private:
  static std::string text_of(const std::vector<int64_t>& numbers, const std::string& between) {
    std::vector<std::string> parts;
    for (auto number : numbers) parts.push_back(std::to_string(number));
    return joined(parts, between);
  }
};

FULGUR_FAMILY(Countdown);

}  // namespace
}  // namespace fulgur
