#include "fulgur/engine/page_tree.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fulgur {

// `tokens` lie in `page`: 64 of them, or fewer in a leaf. Children are found by their first token.
struct PageTree::Node {
  Node* parent = nullptr;
  std::vector<int32_t> tokens;
  int32_t page = -1;
  int64_t users = 0;  // sequences whose path ends here or below
  uint64_t used = 0;
  std::multimap<int32_t, std::unique_ptr<Node>> children;

  bool full() const { return int64_t(tokens.size()) == kPageKeys; }
};

namespace {

int64_t common(std::span<const int32_t> a, std::span<const int32_t> b) {
  return std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first - a.begin();
}

std::span<const int32_t> page_of(std::span<const int32_t> tokens, int64_t index) {
  auto rest = tokens.subspan(index * kPageKeys);
  return rest.first(std::min<size_t>(rest.size(), kPageKeys));
}

}  // namespace

PageTree::PageTree(int64_t pages) : root_(std::make_unique<Node>()), pages_(pages) {
  for (int64_t page = pages; page-- > 0;) free_.push_back(int32_t(page));
}

PageTree::~PageTree() = default;

PageTree::Node* PageTree::find(Node& parent, std::span<const int32_t> tokens) const {
  for (auto [at, end] = parent.children.equal_range(tokens[0]); at != end; ++at)
    if (std::ranges::equal(at->second->tokens, tokens)) return at->second.get();
  return nullptr;
}

PageTree::Match PageTree::match(std::span<const int32_t> tokens, Held& held) {
  Match match;
  if (tokens.empty()) return match;
  auto known = tokens.first(tokens.size() - 1);
  Node* node = root_.get();
  while (match.tokens + kPageKeys <= int64_t(known.size())) {
    Node* next = find(*node, page_of(known, int64_t(held.path.size())));
    if (!next) break;
    hold(*next);
    held.path.push_back(next), held.pages.push_back(next->page);
    match.tokens += kPageKeys, node = next;
  }
  auto rest = known.subspan(match.tokens);
  Node* best = nullptr;
  int64_t most = 0;
  if (!rest.empty())
    for (auto [at, end] = node->children.equal_range(rest[0]); at != end; ++at)
      if (int64_t same = common(at->second->tokens, rest); same > most) most = same, best = at->second.get();
  if (!best) return match;
  hold(*best);  // so that taking a page does not evict it
  int32_t page;
  if (take(page)) {
    match.copy = Copy{best->page, page, most};
    match.tokens += most;
    held.pages.push_back(page);
  }
  let_go(*best);
  return match;
}

int64_t PageTree::available() const { return int64_t(free_.size()) + cached_; }

bool PageTree::grow(Held& held, int64_t tokens) {
  int64_t missing = (tokens + kPageKeys - 1) / kPageKeys - int64_t(held.pages.size());
  if (missing > available()) return false;
  for (; missing > 0; --missing) take(held.pages.emplace_back());
  return true;
}

void PageTree::publish(std::span<const int32_t> tokens, int64_t computed, Held& held) {
  for (int64_t i = int64_t(held.path.size()); (i + 1) * kPageKeys <= computed; ++i) {
    Node& parent = held.path.empty() ? *root_ : *held.path.back();
    auto text = page_of(tokens, i);
    Node* node = find(parent, text);
    if (node) {
      hold(*node);
      free_.push_back(held.pages[i]);
      held.pages[i] = node->page;
    } else {
      node = insert(parent, text, held.pages[i]);
      hold(*node);
    }
    held.path.push_back(node);
  }
}

void PageTree::release(std::span<const int32_t> tokens, int64_t computed, Held& held) {
  publish(tokens, computed, held);
  size_t next = held.path.size();
  auto tail = tokens.subspan(int64_t(next) * kPageKeys, computed - int64_t(next) * kPageKeys);
  Node& parent = held.path.empty() ? *root_ : *held.path.back();
  if (!tail.empty() && !find(parent, tail)) insert(parent, tail, held.pages[next++]);
  for (; next < held.pages.size(); ++next) free_.push_back(held.pages[next]);
  for (; !held.path.empty(); held.path.pop_back()) let_go(*held.path.back());
  held.pages.clear();
}

PageTree::Node* PageTree::insert(Node& parent, std::span<const int32_t> tokens, int32_t page) {
  if (parent.users == 0) idle_.erase({parent.used, &parent});  // no leaf any more
  auto& node = parent.children.emplace(tokens[0], std::make_unique<Node>())->second;
  node->parent = &parent, node->page = page, node->used = ++clock_;
  node->tokens.assign(tokens.begin(), tokens.end());
  idle_.insert({node->used, node.get()});
  ++cached_;
  return node.get();
}

// Whoever holds a node holds its ancestors, so only leaves without users are ever idle.
void PageTree::hold(Node& node) {
  if (node.users++ > 0) return;
  idle_.erase({node.used, &node});
  --cached_;
}

void PageTree::let_go(Node& node) {
  if (--node.users > 0) return;
  node.used = ++clock_;
  ++cached_;
  if (node.children.empty()) idle_.insert({node.used, &node});
}

bool PageTree::take(int32_t& page) {
  if (free_.empty() && !idle_.empty()) evict_one();
  if (free_.empty()) return false;
  page = free_.back();
  free_.pop_back();
  return true;
}

void PageTree::evict_one() {
  Node* node = idle_.begin()->second;
  idle_.erase(idle_.begin());
  free_.push_back(node->page);
  --cached_, ++evictions_;
  Node* parent = node->parent;
  auto [at, end] = parent->children.equal_range(node->tokens[0]);
  parent->children.erase(std::find_if(at, end, [&](const auto& child) { return child.second.get() == node; }));
  if (parent != root_.get() && parent->users == 0 && parent->children.empty()) idle_.insert({parent->used, parent});
}

PageTree::Count PageTree::count() const { return {pages_, int64_t(free_.size()), cached_, evictions_}; }

void PageTree::check(const std::vector<const Held*>& sequences) const {
  auto require = [](bool good, const char* what) {
    if (!good) throw std::logic_error(std::string("[pages] ") + what);
  };
  std::vector<int> owners(pages_);
  std::map<const Node*, int64_t> users;
  for (int32_t page : free_) ++owners.at(page);
  for (const Held* held : sequences) {
    require(held->path.size() <= held->pages.size(), "a path is longer than its pages");
    for (size_t i = 0; i < held->pages.size(); ++i) {
      if (i >= held->path.size()) ++owners.at(held->pages[i]);
      else require(held->path[i]->page == held->pages[i], "a shared page is not its node's"), ++users[held->path[i]];
    }
  }
  int64_t cached = 0, idle = 0;
  auto visit = [&](auto& self, const Node& node) -> void {
    for (const auto& [first, child] : node.children) {
      ++owners.at(child->page);
      require(child->users == users[child.get()], "a node's users are not those that hold it");
      require(child->full() || child->children.empty(), "a partly filled page has children");
      cached += child->users == 0;
      bool leaf = child->users == 0 && child->children.empty();
      require(idle_.contains({child->used, child.get()}) == leaf, "an idle leaf is not listed, or another node is");
      idle += leaf;
      self(self, *child);
    }
  };
  visit(visit, *root_);
  require(cached == cached_ && idle == int64_t(idle_.size()), "cached pages are miscounted");
  for (int count : owners) require(count == 1, count == 0 ? "a page is lost" : "a page has two owners");
}

}  // namespace fulgur
