// Languages of text: built from expressions and rules that may call themselves, and compiled to automata over bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fulgur {

// A set of texts. Cheap to copy; never changes.
class Expr {
 public:
  struct Node;
  explicit Expr(std::shared_ptr<const Node> node) : node_(std::move(node)) {}
  const Node& operator*() const { return *node_; }

 private:
  std::shared_ptr<const Node> node_;
};

using CodePoints = std::vector<std::pair<uint32_t, uint32_t>>;  // ranges, both ends included

Expr literal(std::string_view text);
Expr one_of(const CodePoints& ranges);  // one character, in UTF-8
Expr sequence(std::vector<Expr> parts);
Expr either(std::vector<Expr> choices);                    // of none: no text at all
Expr repeat(Expr part, int64_t least, int64_t most = -1);  // -1: any number
Expr rule(int32_t number);
Expr special(std::string_view token);                    // a special token, by its text
Expr text_without(std::vector<std::string_view> words);  // any text in which none of these comes anywhere

// What is in `ranges` of no code point: the other characters.
CodePoints complement(CodePoints ranges);

// Automata: a state of one reads a byte, a special token, or what another rule's automaton accepts.
struct Grammar {
  struct Range {
    uint8_t low, high;
    int32_t to;
  };
  struct Call {
    int32_t rule, to;  // `to` goes on behind it
  };
  struct Special {
    int32_t token, to;  // a number of `specials`
  };
  struct State {
    std::vector<Range> ranges;  // ascending, apart from each other
    std::vector<Call> calls;
    std::vector<Special> specials;
    bool accepts = false;
  };
  std::vector<State> states;
  std::vector<int32_t> starts;  // by rule
  std::vector<std::string> specials;
  int32_t root = 0;
};

class GrammarBuilder {
 public:
  int32_t declare();  // a rule, to be defined before build()
  int32_t define(Expr expr);
  void define(int32_t rule, Expr expr);
  // Throws InputError when no text fits, when a rule begins with itself, or when the automata grow beyond 200,000 states.
  Grammar build(int32_t root) const;

 private:
  std::vector<std::shared_ptr<Expr>> rules_;
};

}  // namespace fulgur
