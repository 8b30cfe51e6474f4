// Guess my number from 17 to 23. You have 3 guesses.  ->  20, higher, 22, lower, 21
#include <bit>

#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/numbers.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

const std::string kHigher = "higher", kLower = "lower";

class GuessEpisode : public Episode {
 public:
  GuessEpisode(int64_t secret, int64_t guesses) : secret_(secret), left_(guesses) {}
  std::optional<std::string> answer(const Message& message) override {
    auto guess = whole_number(trimmed(message.content));
    found_ = guess == secret_;
    if (found_ || --left_ <= 0) return {};
    if (!guess) return "a number, please";
    return *guess < secret_ ? kHigher : kLower;
  }
  double score() const override { return found_ ? 1 : 0; }

 private:
  int64_t secret_, left_;
  bool found_ = false;
};

class Guess : public Family {
 public:
  std::string name() const override { return "guess"; }
  std::string summary() const override { return "find a number by what the user says to each guess"; }
  int64_t hardest() const override { return 4; }
  std::unique_ptr<Episode> begin(const Task& task) const override {
    return std::make_unique<GuessEpisode>(task.data.at("secret").get<int64_t>(), task.data.at("guesses").get<int64_t>());
  }

  // Hasty: the middle of the whole range, whatever it hears.
  Message solve(const Task& task, const std::vector<Message>& conversation, Strategy strategy) const override {
    int64_t low = task.data.at("low"), high = task.data.at("high"), guess = (low + high) / 2;
    for (size_t i = task.messages.size(); strategy == Strategy::right && i < conversation.size(); ++i) {
      if (conversation[i].content == kHigher) low = guess + 1;
      if (conversation[i].content == kLower) high = guess - 1;
      guess = (low + high) / 2;
    }
    return {Role::assistant, std::to_string(guess), cat("From ", low, " to ", high, ": the middle is ", guess, ".")};
  }

 protected:
  // As many guesses as halving takes at worst.
  Task draw(int64_t difficulty, bool, RandomStream& random) const override {
    auto fewest = int64_t(2) << difficulty, count = between(random, fewest, 2 * fewest - 1);
    auto low = between(random, 10, 999), high = low + count - 1;
    int64_t guesses = std::bit_width(uint64_t(count));
    auto range = cat("from ", low, " to ", high);
    Task task;
    task.key = range;
    task.messages = {{Role::user, cat("Guess my number ", range, ". You have ", guesses, " guesses.")}};
    task.data = {{"low", low}, {"high", high}, {"secret", between(random, low, high)}, {"guesses", guesses}};
    return task;
  }
};

FULGUR_FAMILY(Guess);

}  // namespace
}  // namespace fulgur
