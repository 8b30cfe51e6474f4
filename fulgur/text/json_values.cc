#include "fulgur/text/json_values.h"

#include <algorithm>
#include <map>

#include "fulgur/base/error.h"
#include "fulgur/base/python_json.h"
#include "fulgur/base/utf8.h"

namespace fulgur {
namespace {

const CodePoints kEscaped{{0, 0x1f}, {'"', '"'}, {'\\', '\\'}};

CodePoints both(const CodePoints& a, const CodePoints& b) {
  CodePoints out;
  for (auto [low, high] : a)
    for (auto [from, to] : b)
      if (std::max(low, from) <= std::min(high, to)) out.push_back({std::max(low, from), std::min(high, to)});
  return out;
}

Expr digits(int64_t least, int64_t most) { return repeat(one_of({{'0', '9'}}), least, most); }
Expr nothing() { return sequence({}); }
Expr maybe(Expr part) { return repeat(std::move(part), 0, 1); }

// Numbers of equally many digits, from one to another.
Expr same_length(const std::string& low, const std::string& high) {
  if (low.empty()) return nothing();
  auto behind = low.substr(1);
  int64_t rest = int64_t(behind.size());
  if (low[0] == high[0]) return sequence({literal(low.substr(0, 1)), same_length(behind, high.substr(1))});
  std::vector<Expr> choices{sequence({literal(low.substr(0, 1)), same_length(behind, std::string(rest, '9'))}),
                            sequence({literal(high.substr(0, 1)), same_length(std::string(rest, '0'), high.substr(1))})};
  if (low[0] + 1 < high[0])
    choices.push_back(sequence({one_of({{uint32_t(low[0]) + 1, uint32_t(high[0]) - 1}}), digits(rest, rest)}));
  return either(std::move(choices));
}

Expr magnitudes(int64_t low, int64_t high) {
  std::vector<Expr> choices;
  for (int64_t first = low, power = 10; first <= high; power *= 10) {
    int64_t last = std::min(high, power - 1);
    if (first > last) continue;
    choices.push_back(same_length(std::to_string(first), std::to_string(last)));
    first = last + 1;
  }
  return either(std::move(choices));
}

// Magnitudes with a fraction, up to `high` itself.
Expr fractions(int64_t low, int64_t high) {
  auto zeros = maybe(sequence({literal("."), repeat(literal("0"), 1, 17)}));
  std::vector<Expr> choices{sequence({literal(std::to_string(high)), zeros})};
  if (low < high) choices.push_back(sequence({magnitudes(low, high - 1), maybe(sequence({literal("."), digits(1, 17)}))}));
  return either(std::move(choices));
}

Expr between(int64_t least, int64_t most, Expr (*magnitude)(int64_t, int64_t)) {
  std::vector<Expr> choices;
  if (most >= 0) choices.push_back(magnitude(std::max<int64_t>(least, 0), most));
  if (least < 0) choices.push_back(sequence({literal("-"), magnitude(std::max<int64_t>(-most, 0), -least)}));
  return either(std::move(choices));
}

// Strings that go on differently from all these, or end earlier or later; `names` are of one beginning, which is read.
Expr otherwise(const std::vector<std::string>& names) {
  CodePoints begun = kEscaped;
  std::map<std::string, std::vector<std::string>> behind;  // by the next character
  bool may_end = true;
  for (const auto& name : names) {
    size_t size = 0;
    if (name.empty()) {
      may_end = false;
      continue;
    }
    uint32_t c = next_code_point(name, size);
    begun.push_back({c, c});
    if (both({{c, c}}, kEscaped).empty()) behind[name.substr(0, size)].push_back(name.substr(size));
  }
  std::vector<Expr> choices;
  for (const auto& [character, rest] : behind) choices.push_back(sequence({literal(character), otherwise(rest)}));
  auto plain = [](const CodePoints& without) { return one_of(complement(without)); };
  choices.push_back(sequence({plain(begun), repeat(plain(kEscaped), 0)}));
  if (may_end) choices.push_back(nothing());
  return either(std::move(choices));
}

}  // namespace

Expr json_character(const CodePoints& ranges) {
  std::vector<Expr> choices{one_of(both(ranges, complement(kEscaped)))};
  for (auto [low, high] : both(ranges, kEscaped))
    for (uint32_t c = low; c <= high; ++c) choices.push_back(literal(escape_python_json(std::string(1, char(c)))));
  return either(std::move(choices));
}

Expr integers_between(int64_t least, int64_t most) { return between(least, most, magnitudes); }
Expr numbers_between(int64_t least, int64_t most) { return between(least, most, fractions); }
Expr other_key(const std::vector<std::string>& names) { return otherwise(names); }

JsonValues::JsonValues(GrammarBuilder& builder)
    : blank_(either({nothing(), literal(" "), sequence({literal("\n"), repeat(one_of({{' ', ' '}, {'\t', '\t'}}), 0, 32)})})) {
  auto whole = sequence({maybe(literal("-")), either({literal("0"), sequence({one_of({{'1', '9'}}), digits(0, 14)})})});
  string = builder.define(sequence({literal("\""), repeat(json_character({{0, 0x10ffff}}), 0), literal("\"")}));
  integer = builder.define(whole);
  number = builder.define(
      sequence({whole, maybe(sequence({literal("."), digits(1, 17)})),
                maybe(sequence({one_of({{'E', 'E'}, {'e', 'e'}}), maybe(one_of({{'+', '+'}, {'-', '-'}})), digits(1, 2)}))}));
  value = builder.declare(), any_object = builder.declare();
  Member any{repeat(json_character({{0, 0x10ffff}}), 0), rule(value), false};
  builder.define(any_object, object({}, &any));
  builder.define(value, either({rule(string), rule(number), rule(any_object), array({}, rule(value), 0, -1), literal("true"),
                                literal("false"), literal("null")}));
}

Expr JsonValues::key(const std::string& name) { return literal(escape_python_json(name)); }

Expr JsonValues::object(const std::vector<Member>& members, const Member* other) const {
  auto written = [&](const Member& member) {
    return sequence({literal("\""), member.key, literal("\":"), blank_, member.value});
  };
  auto next = [&](const Member& member) { return sequence({literal(","), blank_, written(member)}); };
  auto behind = [&](size_t first) {
    std::vector<Expr> parts;
    for (size_t i = first; i < members.size(); ++i)
      parts.push_back(members[i].required ? next(members[i]) : maybe(next(members[i])));
    if (other) parts.push_back(repeat(next(*other), 0));
    return sequence(std::move(parts));
  };
  std::vector<Expr> choices;  // by the first member
  bool required = false;
  for (size_t i = 0; i < members.size() && !required; ++i) {
    choices.push_back(sequence({blank_, written(members[i]), behind(i + 1), blank_}));
    required = members[i].required;
  }
  if (!required && other) choices.push_back(sequence({blank_, written(*other), behind(members.size()), blank_}));
  if (!required) choices.push_back(blank_);
  return sequence({literal("{"), either(std::move(choices)), literal("}")});
}

Expr JsonValues::array(const std::vector<Expr>& first, const Expr& item, int64_t least, int64_t most) const {
  auto next = [&](const Expr& value) { return sequence({literal(","), blank_, value}); };
  int64_t named = int64_t(first.size());
  if (most >= 0) named = std::min(named, most);
  // From the end: what may follow behind the first `i` values.
  Expr behind = named == most ? nothing()
                              : repeat(next(item), std::max<int64_t>(0, least - std::max<int64_t>(named, 1)),
                                       most < 0 ? -1 : most - std::max<int64_t>(named, 1));
  if (named == 0 && most != 0) {
    behind = sequence({item, behind});
    if (least == 0) behind = maybe(behind);
  }
  for (int64_t i = named - 1; i >= 0; --i) {
    behind = sequence({i > 0 ? next(first[i]) : first[i], behind});
    if (i >= least) behind = maybe(behind);
  }
  return sequence({literal("["), blank_, behind, blank_, literal("]")});
}

}  // namespace fulgur
