// What families draw: numbers, members of a list, made-up words.
#pragma once

#include <cstdint>
#include <iterator>
#include <string>
#include <vector>

#include "fulgur/base/random.h"

namespace fulgur {

// From low to high, both included.
inline int64_t between(RandomStream& random, int64_t low, int64_t high) {
  return low + int64_t(random.below(uint64_t(high - low + 1)));
}

template <class List>
const auto& pick(const List& list, RandomStream& random) {
  return list[random.below(std::size(list))];
}

// Members of `letters`, with repetition.
std::string draw_letters(const std::string& letters, int64_t count, RandomStream& random);

// A letter, a digit, a letter, a digit, such as "k7q2", which is_fresh or not. Digits end a word for V3.2's pattern, so that each
// is a token in any vocabulary: what a small model can copy though it has never seen it. 8,400 of the one kind, 59,000 of the
// other.
std::string made_up_id(bool fresh, RandomStream& random);

// A word of 4 to 6 letters that can be spoken and is_fresh or not: 98,000 of the one kind, 688,000 of the other.
std::string made_up_word(bool fresh, RandomStream& random);

// "a b c": tokens of their own, which a model can tell apart.
std::string spaced(const std::string& letters);
std::string joined(const std::vector<std::string>& parts, const std::string& between);

}  // namespace fulgur
