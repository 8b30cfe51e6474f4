// The engine's thread and what it owns: orders, who runs and where (engine.cc), and the steps (step.cc).
#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "fulgur/engine/engine.h"
#include "fulgur/engine/page_tree.h"
#include "fulgur/model/transformer.h"
#include "fulgur/text/constraint.h"

namespace fulgur {

struct Sequence {
  uint64_t id = 0;
  Request request;
  OnEvent on_event;
  std::vector<int32_t> tokens;  // the prompt, then what was generated
  PageTree::Held held;
  int64_t computed = 0;       // tokens whose keys lie in the pages
  int64_t cached_tokens = 0;  // of the prompt, found when it was first admitted
  bool admitted = false;
  TokenCounts counts;
  int32_t constrained = 0;       // the constraint's state behind the tokens
  std::optional<int32_t> draft;  // a guess at the next token; only where one row is missing

  int64_t generated() const { return int64_t(tokens.size() - request.prompt.size()); }
  int64_t missing() const { return int64_t(tokens.size()) - computed; }
};

// The choices that lie in these pages for a text's first tokens.
Record recorded(const Cache& cache, const std::vector<int32_t>& pages, int64_t positions);

class Engine::Loop {
 public:
  Loop(Transformer model, const EngineOptions& options);
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  ~Loop() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  uint64_t submit(Request request, OnEvent on_event);
  void cancel(uint64_t id) {
    {
      std::lock_guard lock(mutex_);
      cancelled_.insert(id);
    }
    wake_.notify_one();
  }
  EngineStatistics statistics() const {
    std::lock_guard lock(mutex_);
    return statistics_;
  }

 private:
  using Owned = std::unique_ptr<Sequence>;
  struct Part {                    // what a step computes of a sequence
    Sequence* sequence = nullptr;  // null once it has ended
    int64_t rows = 0;              // of its text; a row of its draft lies behind them, and joins them where the draft was right
    int64_t first_row = 0;         // of the step's rows
    int64_t logits_row = 0;        // of the logits that are drawn from
  };
  struct Drawn {
    Token token;
    bool finite = false;  // else the logits were no numbers
  };

  Attention attention() const { return options_.dense ? Attention::dense : Attention::sparse; }
  at::ScalarType type() const { return options_.bf16 ? at::kBFloat16 : at::kFloat; }

  void run();
  bool take_orders();
  void admit();
  int64_t kept_to_grow() const;
  std::vector<Part> plan();
  void make_room();
  void check_pages() const;
  void let_go(Sequence& sequence);
  void preempt(Sequence& sequence);
  void step(std::vector<Part> parts);
  at::Tensor forward(std::vector<Part>& parts);
  at::Tensor logits(const std::vector<Part*>& ready, const at::Tensor& hidden_ND);
  void sample(std::vector<Part*> ready, const at::Tensor& logits_NV);
  bool take(Part& part, Drawn drawn);
  bool accept(Sequence& sequence, Token token);
  void draft(const std::vector<Part>& parts, const at::Tensor& hidden_ND);
  bool wants_draft(const Sequence& sequence) const;
  void finish(Owned sequence, Finish how, const std::string& error = "");
  Owned remove(Sequence& sequence);
  bool will_share(const Sequence& sequence) const;
  bool cancelled(uint64_t id) const {
    std::lock_guard lock(mutex_);
    return cancelled_.contains(id);
  }
  void publish_statistics();

  const EngineOptions options_;
  const Transformer model_;
  const int64_t pages_, max_context_;

  // Of the engine's thread alone.
  Cache cache_;
  PageTree tree_;
  std::vector<Owned> waiting_, running_;  // waiting: the strongest first
  EngineStatistics now_;
  uint64_t blocked_ = 0;      // who waits for room,
  int64_t blocked_room_ = 0;  // and how much there was

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Owned> inbox_;
  std::set<uint64_t> cancelled_;
  bool stop_ = false;
  uint64_t next_id_ = 1;
  int64_t queued_ = 0;  // in the inbox or waiting
  EngineStatistics statistics_;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace fulgur
