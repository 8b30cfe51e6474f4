// A prompt, and which of its bytes others wrote: there a special token's text is text, so that nobody can forge a turn.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fulgur {

struct Prompt {
  struct Span {
    size_t begin, end;
  };

  std::string text;
  std::vector<Span> plain;  // ascending, apart from each other

  // What the format itself writes.
  void add(std::string_view part) { text += part; }
  // What users, tools and models wrote.
  void add_plain(std::string_view part) {
    if (part.empty()) return;
    if (!plain.empty() && plain.back().end == text.size()) plain.back().end += part.size();
    else plain.push_back({text.size(), text.size() + part.size()});
    text += part;
  }
};

}  // namespace fulgur
