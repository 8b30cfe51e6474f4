// The pushdown automaton of a grammar, followed in all its ways at once. A way is a stack of automata's states; equal stacks are
// one, and so are equal sets of them, so that a text's state is a number and each step is found out once. A token's text is tried
// byte by byte along the tree of all tokens. How far the innermost automaton alone gets is the same whatever lies below it on the
// stack, which is nearly all there is to know inside of a string: that is kept for it.
#include "fulgur/text/constraint.h"

#include <algorithm>

#include "fulgur/base/error.h"

namespace fulgur {
namespace {

constexpr int32_t kNothing = -1;  // below the last of a stack: the text ends
constexpr int32_t kUnknown = -2;  // whatever it may be
constexpr size_t kMostStacks = 1 << 22, kMostMasks = 2048;

struct Stack {
  int32_t state, below;  // `below`: a number of a stack
};

struct Set {
  std::vector<int32_t> stacks;
  bool ends = false;          // one of them may end the text
  bool leaves = false;        // one of them may go on in what is not known
  std::vector<int32_t> next;  // by byte, once it was asked for: a set, or -1; kNotYet
};
constexpr int32_t kNotYet = -2;

// What one state of an automaton allows, whatever is below it.
struct Alone {
  TokenMask mask;
  std::vector<int32_t> left;  // nodes of the tree where it may have come to its end
};

}  // namespace

TokenTree::TokenTree(const Tokenizer& tokenizer) : texts(tokenizer.vocab_size()) {
  std::map<std::string, std::vector<int32_t>> sorted;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    auto text = tokenizer.decode({id});
    if (text.empty()) continue;
    if (tokenizer.is_special(id)) specials[text] = id;
    else texts[id] = text, sorted[text].push_back(id);
  }
  nodes.push_back({0, -1, 0});
  std::vector<int32_t> path{0};  // nodes of the last text
  std::string last;
  for (auto& [text, ids] : sorted) {
    size_t common = std::mismatch(last.begin(), last.end(), text.begin(), text.end()).first - last.begin();
    for (; path.size() > common + 1; path.pop_back()) nodes[path.back()].behind = int32_t(nodes.size());
    for (size_t i = common; i < text.size(); ++i)
      path.push_back(int32_t(nodes.size())), nodes.push_back({uint8_t(text[i]), -1, 0});
    nodes.back().token = int32_t(same.size());
    same.push_back(std::move(ids));
    last = text;
  }
  for (int32_t node : path) nodes[node].behind = int32_t(nodes.size());
}

struct Constraint::Impl {
  Grammar grammar;
  std::shared_ptr<const TokenTree> tree;
  std::vector<int32_t> special_ids;  // of the grammar's special tokens
  mutable std::mutex mutex;
  std::vector<Stack> stacks;
  std::unordered_map<uint64_t, int32_t> stack_numbers;
  std::vector<Set> sets;
  std::map<std::vector<int32_t>, int32_t> set_numbers;
  std::unordered_map<int32_t, Alone> alone;                             // by automaton's state
  std::unordered_map<int32_t, std::shared_ptr<const TokenMask>> masks;  // by set

  int32_t push(int32_t state, int32_t below) {
    uint64_t key = uint64_t(uint32_t(state)) << 32 | uint32_t(below);
    auto [found, is_new] = stack_numbers.try_emplace(key, int32_t(stacks.size()));
    if (is_new) {
      FULGUR_CHECK(stacks.size() < kMostStacks, "[grammar] expected fewer than ", kMostStacks, " different nestings, got more");
      stacks.push_back({state, below});
    }
    return found->second;
  }

  // Each stack where the next byte may be read, by way of calls and returns: each(automaton's state, below).
  template <class Each>
  void for_readers(int32_t state, int32_t below, const Each& each) {
    each(state, below);
    const auto& from = grammar.states[state];
    for (const auto& call : from.calls) for_readers(grammar.starts[call.rule], push(call.to, below), each);
    if (from.accepts && below >= 0) for_readers(stacks[below].state, stacks[below].below, each);
  }

  int32_t set_of(std::vector<int32_t> list) {
    if (list.empty()) return -1;
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
    auto [found, is_new] = set_numbers.try_emplace(list, int32_t(sets.size()));
    if (!is_new) return found->second;
    Set set;
    for (int32_t stack : list)
      for_readers(stacks[stack].state, stacks[stack].below, [&](int32_t state, int32_t below) {
        set.ends |= grammar.states[state].accepts && below == kNothing;
        set.leaves |= grammar.states[state].accepts && below == kUnknown;
      });
    set.stacks = std::move(list);
    sets.push_back(std::move(set));
    return found->second;
  }

  int32_t step(int32_t from, uint8_t byte) {
    if (from < 0) return -1;
    if (sets[from].next.empty()) sets[from].next.assign(256, kNotYet);
    if (int32_t known = sets[from].next[byte]; known != kNotYet) return known;
    std::vector<int32_t> list;
    for (size_t i = 0; i < sets[from].stacks.size(); ++i) {
      Stack top = stacks[sets[from].stacks[i]];
      for_readers(top.state, top.below, [&](int32_t state, int32_t below) {
        for (const auto& range : grammar.states[state].ranges)
          if (range.low <= byte && byte <= range.high) list.push_back(push(range.to, below));
      });
    }
    int32_t to = set_of(std::move(list));
    return sets[from].next[byte] = to;
  }

  int32_t step_special(int32_t from, int32_t token) {
    std::vector<int32_t> list;
    for (int32_t stack : std::vector<int32_t>(sets[from].stacks))
      for_readers(stacks[stack].state, stacks[stack].below, [&](int32_t state, int32_t below) {
        for (const auto& special : grammar.states[state].specials)
          if (special_ids[special.token] == token) list.push_back(push(special.to, below));
      });
    return set_of(std::move(list));
  }

  // Sets the tokens below a node of the tree that fit from a set on; `left` gets the nodes where a stack may leave what is known.
  void walk(int32_t node, int32_t from, TokenMask& mask, std::vector<int32_t>* left) {
    std::vector<std::pair<int32_t, int32_t>> path{{tree->nodes[node].behind, from}};  // till where, and the set there
    if (left && sets[from].leaves) left->push_back(node);
    for (int32_t at = node + 1, end = tree->nodes[node].behind; at < end;) {
      while (path.back().first <= at) path.pop_back();
      const auto& here = tree->nodes[at];
      int32_t to = step(path.back().second, here.byte);
      if (to < 0) {
        at = here.behind;
        continue;
      }
      if (here.token >= 0)
        for (int32_t id : tree->same[here.token]) mask[id / 64] |= uint64_t(1) << id % 64;
      if (left && sets[to].leaves) left->push_back(at);
      path.push_back({here.behind, to});
      ++at;
    }
  }

  const Alone& alone_of(int32_t state) {
    auto [found, is_new] = alone.try_emplace(state);
    if (is_new) {
      Alone made;
      made.mask.resize((tree->texts.size() + 63) / 64);
      walk(0, set_of({push(state, kUnknown)}), made.mask, &made.left);
      alone[state] = std::move(made);
    }
    return alone[state];
  }

  std::shared_ptr<const TokenMask> mask_of(int32_t number) {
    if (auto found = masks.find(number); found != masks.end()) return found->second;
    auto out = std::make_shared<TokenMask>((tree->texts.size() + 63) / 64);
    for (int32_t stack : std::vector<int32_t>(sets[number].stacks)) {
      Stack top = stacks[stack];
      const auto& known = alone_of(top.state);
      for (size_t i = 0; i < out->size(); ++i) (*out)[i] |= known.mask[i];
      if (top.below < 0) continue;
      int32_t below = set_of({top.below});
      for (int32_t node : known.left) {
        if (node > 0) walk(node, below, *out, nullptr);
        else {
          auto rest = mask_of(below);
          for (size_t i = 0; i < out->size(); ++i) (*out)[i] |= (*rest)[i];
        }
      }
    }
    for (int32_t id : special_ids)
      if (step_special(number, id) >= 0) (*out)[id / 64] |= uint64_t(1) << id % 64;
    if (masks.size() >= kMostMasks) masks.clear();
    masks[number] = out;
    return out;
  }
};

Constraint::Constraint(Grammar grammar, std::shared_ptr<const TokenTree> tokens) : impl_(std::make_unique<Impl>()) {
  impl_->grammar = std::move(grammar);
  impl_->tree = std::move(tokens);
  for (const auto& text : impl_->grammar.specials) {
    auto found = impl_->tree->specials.find(text);
    FULGUR_CHECK(found != impl_->tree->specials.end(), "[grammar] expected a special token ", text,
                 " in the vocabulary, got none");
    impl_->special_ids.push_back(found->second);
  }
  int32_t root = impl_->grammar.starts[impl_->grammar.root];
  impl_->set_of({impl_->push(root, kNothing)});  // set 0
}

Constraint::~Constraint() = default;

int32_t Constraint::start() const { return 0; }

int32_t Constraint::advance(int32_t state, int32_t token) const {
  std::lock_guard lock(impl_->mutex);
  auto& specials = impl_->special_ids;
  if (std::find(specials.begin(), specials.end(), token) != specials.end()) return impl_->step_special(state, token);
  const auto& text = impl_->tree->texts.at(token);
  if (text.empty()) return -1;
  for (char byte : text) state = impl_->step(state, uint8_t(byte));
  return state;
}

std::shared_ptr<const TokenMask> Constraint::mask(int32_t state) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->mask_of(state);
}

bool Constraint::complete(int32_t state) const {
  auto next = mask(state);
  return std::all_of(next->begin(), next->end(), [](uint64_t word) { return word == 0; });
}

int64_t Constraint::vocab_size() const { return int64_t(impl_->tree->texts.size()); }

bool Constraint::may_end(int32_t state) const {
  std::lock_guard lock(impl_->mutex);
  return impl_->sets[state].ends;
}

}  // namespace fulgur
