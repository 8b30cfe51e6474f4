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

  // Views into `text`, which must be valid UTF-8; together they are the whole text.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fulgur
