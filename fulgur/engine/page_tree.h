// Which page of a cache holds which text. A full page of 64 tokens is shared by all sequences that begin with the same tokens:
// it is a node of a tree, whose path from the root spells the text. What nobody holds stays until room is needed, the least
// recently used leaf going first. A sequence's last, partly filled page is its own; when let go it becomes a leaf too, and
// who continues its text gets a copy of its rows (copy on write). No torch. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "fulgur/ops/pages.h"

namespace fulgur {

class PageTree {
 public:
  explicit PageTree(int64_t pages);
  ~PageTree();
  PageTree(const PageTree&) = delete;
  PageTree& operator=(const PageTree&) = delete;

  struct Node;

  // What a sequence holds: its pages in order, the first `path.size()` of them shared.
  struct Held {
    std::vector<int32_t> pages;
    std::vector<Node*> path;
  };
  // Rows [0, count) of page `from` are to be copied into page `to`.
  struct Copy {
    int32_t from, to;
    int64_t count;
  };
  struct Match {
    int64_t tokens = 0;  // so many first tokens need not be computed
    std::optional<Copy> copy;
  };

  // Takes hold of the longest stored beginning of `tokens` that leaves at least one to compute; `held` must be empty. The copy is
  // to be made before anything else is asked of this tree.
  Match match(std::span<const int32_t> tokens, Held& held);

  // How many pages could be taken: free ones, and cached ones nobody holds.
  int64_t available() const;

  // Room for `tokens` tokens; false, and nothing is taken, when too few pages are free or can be.
  bool grow(Held& held, int64_t tokens);

  // The first `computed` of `tokens` lie in the pages: full ones become shared. A text someone published meanwhile is taken over,
  // for its rows are the same bits.
  void publish(std::span<const int32_t> tokens, int64_t computed, Held& held);

  // The same, then all is let go, the last page included.
  void release(std::span<const int32_t> tokens, int64_t computed, Held& held);

  struct Count {
    int64_t pages = 0, free = 0, cached = 0;  // cached: held by no sequence, but with a text
    int64_t evictions = 0;
  };
  Count count() const;

  // Throws std::logic_error when a page is lost, held twice, or a count is wrong; `sequences` are all that hold pages.
  void check(const std::vector<const Held*>& sequences) const;

 private:
  Node* find(Node& parent, std::span<const int32_t> tokens) const;
  Node* insert(Node& parent, std::span<const int32_t> tokens, int32_t page);
  void hold(Node& node);
  void let_go(Node& node);
  bool take(int32_t& page);
  void evict_one();

  std::unique_ptr<Node> root_;
  std::vector<int32_t> free_;
  std::set<std::pair<uint64_t, Node*>> idle_;  // leaves that nobody holds, oldest use first
  int64_t pages_, cached_ = 0, evictions_ = 0;
  uint64_t clock_ = 0;
};

}  // namespace fulgur
