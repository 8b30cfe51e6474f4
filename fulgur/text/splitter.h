// Splits text as a tokenizer's pre_tokenizer says: regular expressions one after the other, each match a piece of its
// own and so is what lies between (behaviour "Isolated"). PCRE2 with JIT. Thread-safe.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fulgur {

class Splitter {
 public:
  // Throws InputError when a pattern does not compile; `name` stands for the file.
  Splitter(const std::vector<std::string>& patterns, const std::string& name);
  ~Splitter();
  Splitter(Splitter&&) noexcept;
  Splitter& operator=(Splitter&&) noexcept;
  Splitter(const Splitter&) = delete;
  Splitter& operator=(const Splitter&) = delete;

  // each(piece): views into `text`, which must be valid UTF-8; together they are the whole text.
  template <class Each>
  void split(std::string_view text, const Each& each) const {
    if (!text.empty()) split(text, 0, each);
  }

 private:
  // Where the next match of a pattern begins and ends; both text.size() when there is none.
  struct Match {
    size_t begin, end;
  };
  Match next(size_t pattern, std::string_view text, size_t from) const;

  template <class Each>
  void split(std::string_view text, size_t pattern, const Each& each) const {
    if (pattern == patterns_) return each(text);
    for (size_t done = 0; done < text.size();) {
      auto [begin, end] = next(pattern, text, done);
      if (begin > done) split(text.substr(done, begin - done), pattern + 1, each);
      if (end > begin) split(text.substr(begin, end - begin), pattern + 1, each);
      done = end;
    }
  }

  struct Impl;
  std::unique_ptr<Impl> impl_;
  size_t patterns_;
};

}  // namespace fulgur
