#include "fulgur/tasks/draw.h"

#include "fulgur/tasks/task.h"

namespace fulgur {

std::string draw_letters(const std::string& letters, int64_t count, RandomStream& random) {
  std::string out;
  for (int64_t i = 0; i < count; ++i) out += pick(letters, random);
  return out;
}

std::string made_up_id(bool fresh, RandomStream& random) {
  static const std::string kLetters = "abcdefghijklmnopqrstuvwxyz", kDigits = "0123456789";
  for (;;) {
    std::string id;
    for (const auto* characters : {&kLetters, &kDigits, &kLetters, &kDigits}) id += pick(*characters, random);
    if (is_fresh(id) == fresh) return id;
  }
}

std::string made_up_word(bool fresh, RandomStream& random) {
  static const std::string kConsonants = "bdfghjklmnprstvwyz", kVowels = "aeiou";
  for (;;) {
    std::string word;
    auto length = size_t(between(random, 4, 6));
    while (word.size() < length) word += pick(word.size() % 2 ? kVowels : kConsonants, random);
    if (is_fresh(word) == fresh) return word;
  }
}

std::string spaced(const std::string& letters) {
  std::string out;
  for (char letter : letters) {
    if (!out.empty()) out += ' ';
    out += letter;
  }
  return out;
}

std::string joined(const std::vector<std::string>& parts, const std::string& between) {
  std::string out;
  for (size_t i = 0; i < parts.size(); ++i) out += (i ? between : "") + parts[i];
  return out;
}

}  // namespace fulgur
