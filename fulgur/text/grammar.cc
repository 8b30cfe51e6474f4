#include "fulgur/text/grammar.h"

#include <algorithm>
#include <map>
#include <set>

#include "fulgur/base/error.h"
#include "fulgur/base/utf8.h"

namespace fulgur {

struct Expr::Node {
  enum Kind { bytes, special, without, sequence, choice, repeat, rule };
  explicit Node(Kind of) : kind(of) {}
  Kind kind;
  uint8_t low = 0, high = 0;                 // of bytes
  std::string text;                          // of special
  std::vector<std::vector<uint32_t>> words;  // of without, by code points
  std::vector<Expr> parts;
  int64_t least = 0, most = 0;  // of repeat
  int32_t number = 0;           // of rule
};

namespace {

constexpr size_t kMostStates = 200000;

using Node = Expr::Node;

Expr make(Node node) { return Expr(std::make_shared<const Node>(std::move(node))); }
Expr byte_range(uint8_t low, uint8_t high) {
  Node node(Node::bytes);
  node.low = low, node.high = high;
  return make(std::move(node));
}
Expr compound(Node::Kind kind, std::vector<Expr> parts) {
  Node node(kind);
  node.parts = std::move(parts);
  return make(std::move(node));
}

// Characters of one length in UTF-8, as the ranges of their bytes. A range is cut where a byte but the first is not free.
void add_characters(uint32_t low, uint32_t high, int continuations, std::vector<Expr>& choices) {
  static constexpr uint8_t kLead[] = {0, 0xc0, 0xe0, 0xf0};
  for (int i = continuations; i > 0; --i) {
    uint32_t mask = (1u << 6 * i) - 1;
    if ((low & ~mask) == (high & ~mask)) continue;
    if (low & mask) {
      add_characters(low, low | mask, continuations, choices);
      return add_characters((low | mask) + 1, high, continuations, choices);
    }
    if ((high & mask) != mask) {
      add_characters(low, (high & ~mask) - 1, continuations, choices);
      return add_characters(high & ~mask, high, continuations, choices);
    }
  }
  std::vector<Expr> parts;
  for (int i = continuations; i >= 0; --i) {
    uint32_t first = low >> 6 * i, last = high >> 6 * i;
    if (i == continuations) parts.push_back(byte_range(uint8_t(kLead[i] | first), uint8_t(kLead[i] | last)));
    else parts.push_back(byte_range(uint8_t(0x80 | (first & 63)), uint8_t(0x80 | (last & 63))));
  }
  choices.push_back(sequence(std::move(parts)));
}

std::vector<uint32_t> code_points(std::string_view text) {
  std::vector<uint32_t> out;
  for (size_t at = 0; at < text.size();) out.push_back(next_code_point(text, at));
  return out;
}

// The automaton of an expression, with steps that read nothing.
struct Nfa {
  struct State {
    std::vector<int32_t> free;
    std::vector<Grammar::Range> ranges;
    std::vector<Grammar::Call> calls;
    std::vector<Grammar::Special> specials;
  };
  std::vector<State> states;
  std::vector<std::string>& tokens;

  int32_t add() {
    FULGUR_CHECK(states.size() < kMostStates, "[grammar] expected an automaton of at most ", kMostStates,
                 " states, got more\n  hint: smaller bounds of lengths and counts");
    states.emplace_back();
    return int32_t(states.size()) - 1;
  }

  // Where `expr` ends when it begins at `from`.
  int32_t append(const Expr& expr, int32_t from) {
    const Node& node = *expr;
    int32_t to;
    switch (node.kind) {
      case Node::bytes:
        to = add();
        states[from].ranges.push_back({node.low, node.high, to});
        return to;
      case Node::special:
        to = add();
        states[from].specials.push_back({token(node.text), to});
        return to;
      case Node::rule:
        to = add();
        states[from].calls.push_back({node.number, to});
        return to;
      case Node::without:
        return append_without(node.words, from);
      case Node::sequence:
        for (const auto& part : node.parts) from = append(part, from);
        return from;
      case Node::choice:
        to = add();
        for (const auto& part : node.parts) {
          int32_t first = add();  // so that loops of one choice do not enter another
          states[from].free.push_back(first);
          int32_t end = append(part, first);
          states[end].free.push_back(to);
        }
        return to;
      case Node::repeat:
        return append_repeat(node, from);
    }
    return from;
  }

  int32_t append_repeat(const Node& node, int32_t from) {
    for (int64_t i = 0; i < node.least; ++i) from = append(node.parts[0], from);
    int32_t to = add();
    if (node.most < 0) {
      int32_t loop = add();
      states[from].free.push_back(loop);
      int32_t end = append(node.parts[0], loop);
      states[end].free.push_back(loop), states[loop].free.push_back(to);
      return to;
    }
    states[from].free.push_back(to);
    for (int64_t i = node.least; i < node.most; ++i) {
      from = append(node.parts[0], from);
      states[from].free.push_back(to);
    }
    return to;
  }

  // A state for each beginning of a word: the longest that was read last (Aho, Corasick).
  int32_t append_without(const std::vector<std::vector<uint32_t>>& words, int32_t from) {
    std::map<std::vector<uint32_t>, int32_t> beginnings{{{}, from}};
    std::set<uint32_t> letters;
    for (const auto& word : words) {
      letters.insert(word.begin(), word.end());
      for (size_t n = 1; n < word.size(); ++n)
        if (auto [place, is_new] = beginnings.try_emplace({word.begin(), word.begin() + int64_t(n)}); is_new)
          place->second = add();
    }
    CodePoints used;
    for (uint32_t letter : letters) used.push_back({letter, letter});
    int32_t to = add();
    for (const auto& [read, state] : beginnings) {
      free_step(state, to);
      free_step(append(one_of(complement(used)), state), from);
      for (uint32_t letter : letters) {
        auto text = read;
        text.push_back(letter);
        if (int32_t next = behind(std::move(text), beginnings, words); next >= 0)
          free_step(append(one_of({{letter, letter}}), state), next);
      }
    }
    return to;
  }
  void free_step(int32_t from, int32_t to) { states[from].free.push_back(to); }

  // The state of the longest beginning that `text` ends with; -1 where it ends with a whole word.
  static int32_t behind(std::vector<uint32_t> text, const std::map<std::vector<uint32_t>, int32_t>& beginnings,
                        const std::vector<std::vector<uint32_t>>& words) {
    for (int32_t longest = -1;; text.erase(text.begin())) {
      if (std::find(words.begin(), words.end(), text) != words.end()) return -1;
      if (auto found = beginnings.find(text); longest < 0 && found != beginnings.end()) longest = found->second;
      if (text.empty()) return longest;
    }
  }

  int32_t token(const std::string& text) {
    auto found = std::find(tokens.begin(), tokens.end(), text);
    if (found == tokens.end()) found = tokens.insert(tokens.end(), text);
    return int32_t(found - tokens.begin());
  }
};

// One rule's automaton without free steps, its states behind those of `out`; returns its first.
class Determinizer {
 public:
  Determinizer(const Nfa& nfa, int32_t accepts, Grammar& out)
      : nfa_(nfa),
        accepts_(accepts),
        out_(out),
        seen_(nfa.states.size()) {}

  int32_t run(int32_t start) {
    int32_t first = state_of({start});
    for (size_t i = 0; i < pending_.size(); ++i) fill(pending_[i].first, pending_[i].second);
    return first;
  }

 private:
  using Set = std::vector<int32_t>;

  int32_t state_of(Set set) {
    ++stamp_;
    for (int32_t s : set) seen_[s] = stamp_;
    for (size_t i = 0; i < set.size(); ++i)
      for (int32_t next : nfa_.states[set[i]].free)
        if (seen_[next] != stamp_) seen_[next] = stamp_, set.push_back(next);
    std::erase_if(set, [&](int32_t s) {
      const auto& state = nfa_.states[s];
      return s != accepts_ && state.ranges.empty() && state.calls.empty() && state.specials.empty();
    });
    std::sort(set.begin(), set.end());
    set.erase(std::unique(set.begin(), set.end()), set.end());
    auto [found, is_new] = states_.try_emplace(set, int32_t(out_.states.size()));
    if (is_new) {
      FULGUR_CHECK(out_.states.size() < kMostStates, "[grammar] expected automata of at most ", kMostStates, " states, got more");
      out_.states.emplace_back();
      pending_.emplace_back(found->second, set);
    }
    return found->second;
  }

  void fill(int32_t number, const Set set) {
    Grammar::State state;
    std::vector<Grammar::Range> ranges;
    std::map<int32_t, Set> calls, specials;
    for (int32_t s : set) {
      const auto& from = nfa_.states[s];
      state.accepts |= s == accepts_;
      ranges.insert(ranges.end(), from.ranges.begin(), from.ranges.end());
      for (const auto& call : from.calls) calls[call.rule].push_back(call.to);
      for (const auto& special : from.specials) specials[special.token].push_back(special.to);
    }
    std::vector<int> cuts;
    for (const auto& range : ranges) cuts.push_back(range.low), cuts.push_back(range.high + 1);
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      Set to;
      for (const auto& range : ranges)
        if (range.low <= cuts[i] && cuts[i] <= range.high) to.push_back(range.to);
      if (to.empty()) continue;
      int32_t next = state_of(std::move(to));
      bool longer = !state.ranges.empty() && state.ranges.back().to == next && state.ranges.back().high + 1 == cuts[i];
      if (longer) state.ranges.back().high = uint8_t(cuts[i + 1] - 1);
      else state.ranges.push_back({uint8_t(cuts[i]), uint8_t(cuts[i + 1] - 1), next});
    }
    for (auto& [rule, to] : calls) state.calls.push_back({rule, state_of(to)});
    for (auto& [token, to] : specials) state.specials.push_back({token, state_of(to)});
    out_.states[number] = std::move(state);
  }

  const Nfa& nfa_;
  int32_t accepts_;
  Grammar& out_;
  std::map<Set, int32_t> states_;
  std::vector<std::pair<int32_t, Set>> pending_;
  std::vector<int> seen_;  // by state: the last search that met it
  int stamp_ = 0;
};

// Steps that lead to no accepted text go; throws when none is left at the root.
void prune(Grammar& grammar) {
  std::vector<bool> good(grammar.states.size());
  auto leads = [&](int32_t to) { return good[to]; };
  auto called = [&](const Grammar::Call& call) { return good[grammar.starts[call.rule]] && good[call.to]; };
  for (bool changed = true; changed;) {
    changed = false;
    for (size_t i = good.size(); i-- > 0;) {
      const auto& s = grammar.states[i];
      if (good[i]) continue;
      good[i] = s.accepts || std::any_of(s.ranges.begin(), s.ranges.end(), [&](auto& range) { return leads(range.to); }) ||
                std::any_of(s.calls.begin(), s.calls.end(), called) ||
                std::any_of(s.specials.begin(), s.specials.end(), [&](auto& special) { return leads(special.to); });
      changed |= good[i];
    }
  }
  for (auto& state : grammar.states) {
    std::erase_if(state.ranges, [&](auto& range) { return !leads(range.to); });
    std::erase_if(state.calls, [&](auto& call) { return !called(call); });
    std::erase_if(state.specials, [&](auto& special) { return !leads(special.to); });
  }
  FULGUR_CHECK(good[grammar.starts[grammar.root]], "[grammar] expected some text that fits, got a grammar that none does");
}

// Throws when a rule may begin with itself, for it would call itself for ever.
class LeftRecursion {
 public:
  explicit LeftRecursion(const Grammar& grammar)
      : grammar_(grammar),
        nullable_(grammar.starts.size()),
        mark_(grammar.starts.size()) {
    for (bool changed = true; changed;) {
      changed = false;
      for (size_t rule = 0; rule < nullable_.size(); ++rule)
        if (!nullable_[rule] && reads_nothing(rule)) nullable_[rule] = changed = true;
    }
    for (size_t rule = 0; rule < mark_.size(); ++rule) visit(rule);
  }

 private:
  // The states where a rule is before it has read anything.
  std::vector<int32_t> before_reading(size_t rule) const {
    std::vector<int32_t> states{grammar_.starts[rule]};
    for (size_t i = 0; i < states.size(); ++i)
      for (const auto& call : grammar_.states[states[i]].calls)
        if (nullable_[call.rule] && std::find(states.begin(), states.end(), call.to) == states.end()) states.push_back(call.to);
    return states;
  }
  bool reads_nothing(size_t rule) const {
    auto states = before_reading(rule);
    return std::any_of(states.begin(), states.end(), [&](int32_t s) { return grammar_.states[s].accepts; });
  }
  void visit(size_t rule) {
    if (mark_[rule] == 2) return;
    FULGUR_CHECK(mark_[rule] == 0,
                 "[grammar] expected rules that read something before they call themselves, got one that does not");
    mark_[rule] = 1;
    for (int32_t state : before_reading(rule))
      for (const auto& call : grammar_.states[state].calls) visit(size_t(call.rule));
    mark_[rule] = 2;
  }

  const Grammar& grammar_;
  std::vector<bool> nullable_;
  std::vector<int> mark_;  // 1: being visited, 2: done
};

}  // namespace

Expr literal(std::string_view text) {
  std::vector<Expr> parts;
  for (char c : text) parts.push_back(byte_range(uint8_t(c), uint8_t(c)));
  return sequence(std::move(parts));
}

Expr one_of(const CodePoints& ranges) {
  constexpr uint32_t kFirst[] = {0, 0x80, 0x800, 0x10000, 0x110000};  // of each length in bytes
  std::vector<Expr> choices;
  for (auto [low, high] : ranges)
    for (int more = 0; more < 4; ++more)
      for (auto [from, to] : {std::pair(0u, 0xd7ffu), std::pair(0xe000u, 0x10ffffu)}) {  // without surrogates
        uint32_t first = std::max({low, kFirst[more], from}), last = std::min({high, kFirst[more + 1] - 1, to});
        if (first <= last) add_characters(first, last, more, choices);
      }
  return either(std::move(choices));
}

CodePoints complement(CodePoints ranges) {
  std::sort(ranges.begin(), ranges.end());
  CodePoints out;
  uint32_t next = 0;
  for (auto [low, high] : ranges) {
    if (low > next) out.push_back({next, low - 1});
    next = std::max(next, high + 1);
  }
  if (next <= 0x10ffff) out.push_back({next, 0x10ffff});
  return out;
}

Expr sequence(std::vector<Expr> parts) { return compound(Node::sequence, std::move(parts)); }
Expr either(std::vector<Expr> choices) { return compound(Node::choice, std::move(choices)); }

Expr repeat(Expr part, int64_t least, int64_t most) {
  Node node(Node::repeat);
  node.parts.push_back(std::move(part));
  node.least = least, node.most = most;
  return make(std::move(node));
}

Expr rule(int32_t number) {
  Node node(Node::rule);
  node.number = number;
  return make(std::move(node));
}

Expr text_without(std::vector<std::string_view> words) {
  Node node(Node::without);
  for (auto word : words) node.words.push_back(code_points(word));
  return make(std::move(node));
}

Expr special(std::string_view token) {
  Node node(Node::special);
  node.text = token;
  return make(std::move(node));
}

int32_t GrammarBuilder::declare() {
  rules_.push_back(nullptr);
  return int32_t(rules_.size()) - 1;
}

int32_t GrammarBuilder::define(Expr expr) {
  int32_t out = declare();
  define(out, std::move(expr));
  return out;
}

void GrammarBuilder::define(int32_t rule, Expr expr) { rules_.at(rule) = std::make_shared<Expr>(std::move(expr)); }

Grammar GrammarBuilder::build(int32_t root) const {
  Grammar out;
  out.root = root;
  for (const auto& expr : rules_) {
    Nfa nfa{{}, out.specials};
    int32_t start = nfa.add(), end = nfa.append(*expr, start);
    out.starts.push_back(Determinizer(nfa, end, out).run(start));
  }
  prune(out);
  LeftRecursion{out};
  return out;
}

}  // namespace fulgur
