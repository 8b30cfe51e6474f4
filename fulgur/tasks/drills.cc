#include "fulgur/tasks/drills.h"

#include <algorithm>
#include <iterator>
#include <sstream>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/tasks/draw.h"
#include "fulgur/tasks/task.h"

namespace fulgur {
namespace {

std::string letters(RandomStream& random) {
  static const std::string all = "abcdefghijklmnopqrstuvwxyz";
  std::string out;
  for (uint64_t left = 2 + random.below(6); left > 0; --left) out += all[random.below(all.size())];
  return out;
}

std::string string_of_no_meaning(RandomStream& random) {
  for (;;) {
    auto kind = random.below(3);
    auto out = kind == 0 ? letters(random) : kind == 1 ? made_up_word(/*fresh=*/false, random) : made_up_id(false, random);
    if (!is_fresh(out)) return out;
  }
}

struct Pair {
  std::string key, value;
};

std::vector<Pair> pairs(RandomStream& random, uint64_t count) {
  std::vector<Pair> out;
  while (out.size() < count) {
    Pair pair{string_of_no_meaning(random), string_of_no_meaning(random)};
    if (std::none_of(out.begin(), out.end(), [&](const Pair& other) { return other.key == pair.key; })) out.push_back(pair);
  }
  return out;
}

// How a string stands in its line: what is before it decides how it is cut into tokens.
std::string dressed(const std::string& text, RandomStream& random) {
  static const std::pair<const char*, const char*> dresses[] = {{"", ""}, {" ", " "}, {"\"", "\""}, {"(", ")"}, {" \"", "\""}};
  auto [before, behind] = dresses[random.below(std::size(dresses))];
  return before + text + behind;
}

std::string joined(const std::vector<Pair>& all, const std::string& separator, const std::string& end) {
  std::string out;
  for (const auto& pair : all) out += (out.empty() ? "" : separator) + pair.key;
  return out + end;
}

// A line, again and again.
std::string line_again(RandomStream& random) {
  auto line = joined(pairs(random, 1 + random.below(6)), " ", "\n");
  return line + line + line;
}

// A list, and again, with other signs between.
std::string list_twice(RandomStream& random) {
  static const char* separators[] = {", ", " ", "\n", "; ", "\" \"", " -> "};
  auto all = pairs(random, 2 + random.below(4));
  auto separator = [&] { return separators[random.below(std::size(separators))]; };
  return joined(all, separator(), "\n") + joined(all, separator(), "\n") + joined(all, separator(), "\n");
}

// Keys and values, then keys whose values are to be found.
std::string table(RandomStream& random) {
  static const char* arrows[] = {": ", " = ", " -> ", "\": \"", " is "};
  auto all = pairs(random, 1 + random.below(5));
  std::string arrow = arrows[random.below(std::size(arrows))], out;
  for (const auto& pair : all) out += pair.key + arrow + pair.value + "\n";
  for (size_t i = 0; i < all.size(); ++i) {
    const auto& pair = all[random.below(all.size())];
    out += dressed(pair.key, random) + "?" + dressed(pair.value, random) + "\n";
  }
  return out;
}

// A record as JSON, what is asked of it, and the answer.
std::string record(RandomStream& random) {
  auto all = pairs(random, 1 + random.below(3));
  std::string out = "{";
  for (size_t i = 0; i < all.size(); ++i) out += cat(i ? ", " : "", "\"", all[i].key, "\": \"", all[i].value, "\"");
  out += "}\n";
  for (size_t i = 0; i < 2; ++i) {
    const auto& pair = all[random.below(all.size())];
    out += "The " + pair.key + " is " + dressed(pair.value, random) + ".\n";
  }
  return out;
}

// a to b, b to c: from a to c.
std::string chain(RandomStream& random) {
  auto all = pairs(random, 3 + random.below(2));
  std::string out;
  for (size_t i = 0; i + 1 < all.size(); ++i) out += all[i].key + " to " + all[i + 1].key + "\n";
  size_t from = random.below(all.size() - 2);
  return out + "from " + all[from].key + " to " + all[from + 1].key + " to " + all[from + 2].key + "\n";
}

}  // namespace

std::string repeated_line(RandomStream& random) {
  // Whole tokens of a small vocabulary, most of them: one is enough to tell where it was before.
  static const auto words = [] {
    std::istringstream all(
        "the and for that with you not are from can this which all will was have has but one they his who her him had she when "
        "where what there their then them these some other about more into than only over also time after first how new any work "
        "use may would should could been being does made make part number between under through while each such same most must "
        "because before every without within against name file line list value string function object type return default");
    return std::vector<std::string>{std::istream_iterator<std::string>(all), {}};
  }();
  bool of_words = random.below(2);
  auto count = (2 + random.below(5)) * (of_words ? 2 : 1);
  std::vector<std::string> items;
  while (items.size() < count) items.push_back(of_words ? pick(words, random) : made_up_id(/*fresh=*/false, random));
  auto line = joined(items, " ") + "\n", out = line + line + line;
  return random.below(2) ? out + line : out;
}

std::string drill(RandomStream& random) {
  using Kind = std::string (*)(RandomStream&);
  static constexpr Kind kinds[] = {line_again, list_twice, table, record, chain};
  return random.below(2) ? repeated_line(random) : pick(kinds, random)(random);
}

}  // namespace fulgur
