// Start at 3 5. Go up, up, left. Where?  ->  2 7
#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/question.h"

namespace fulgur {
namespace {

struct Move {
  const char* name;
  int64_t x, y;
};
constexpr Move kMoves[] = {{"up", 0, 1}, {"down", 0, -1}, {"left", -1, 0}, {"right", 1, 0}};

class Grid : public QuestionFamily {
 public:
  std::string name() const override { return "grid"; }
  std::string summary() const override { return "where a walk over a grid ends: x grows to the right, y upwards"; }
  int64_t hardest() const override { return 8; }

 protected:
  Question ask(int64_t difficulty, RandomStream& random) const override {
    auto x = between(random, 0, 9), y = between(random, 0, 9);
    auto start = cat(x, " ", y);
    std::vector<std::string> moves, places;
    for (int64_t i = 0; i < 2 * difficulty + 3; ++i) {
      const auto& move = pick(kMoves, random);
      x += move.x, y += move.y;
      moves.push_back(move.name);
      places.push_back(cat(x, " ", y));
    }
    Question out;
    out.prompt = "Start at " + start + ". Go " + joined(moves, ", ") + ". Where?";
    out.key = out.prompt;
    out.answer = places.back();
    out.thought = joined(places, ", ");
    out.hasty = places[places.size() / 2];
    return out;
  }
};

FULGUR_FAMILY(Grid);

}  // namespace
}  // namespace fulgur
