// JSON's values as expressions of a grammar. Between them stand a blank, a line end with blanks, or nothing.
#pragma once

#include "fulgur/text/grammar.h"

namespace fulgur {

constexpr int64_t kMostInteger = 1000000000000000;  // 10^15: every number below is exact wherever JSON is read

// One character of a class inside of a string, escaped where it must be.
Expr json_character(const CodePoints& ranges);

// Whole numbers, and all numbers, from `least` to `most`.
Expr integers_between(int64_t least, int64_t most);
Expr numbers_between(int64_t least, int64_t most);

// The inside of a string that is none of these.
Expr other_key(const std::vector<std::string>& names);

// Rules of any value, and what values are put together from.
class JsonValues {
 public:
  explicit JsonValues(GrammarBuilder& builder);

  struct Member {
    Expr key, value;  // key: the inside of its quotes
    bool required;
  };

  int32_t string, integer, number, value, any_object;

  static Expr key(const std::string& name);
  // Members in their order, those that are not required or not; behind them any number of `other`.
  Expr object(const std::vector<Member>& members, const Member* other) const;
  // `first` in their order, then any number of `item`; `most` -1: without an end.
  Expr array(const std::vector<Expr>& first, const Expr& item, int64_t least, int64_t most) const;

 private:
  Expr blank_;
};

}  // namespace fulgur
