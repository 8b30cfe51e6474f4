// Many texts at once over one model: a batch of sequences that one thread advances, and only it touches.
//
// A step takes the last token of every sequence that generates and shares `chunk` rows among those that still read their prompts,
// so a long prompt delays the others by one chunk at most. Keys lie in pages (page_tree.h): equal beginnings of texts are stored
// and computed once, what nobody uses stays until room is needed, and where room ends the youngest sequence of the lowest
// priority gives its pages up and is computed again later. A draft is a second row of its sequence, which counts where the
// sampler draws that very token. A row's result depends on its own text alone, so none of this changes a bit: the
// log-probabilities are those of `fulgur forward`. No torch in this header.
//
// submit() and cancel() may be called from any thread. Events are called on the engine's own thread and must not wait for it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "fulgur/base/error.h"
#include "fulgur/engine/sampler.h"
#include "fulgur/ops/formats.h"

namespace fulgur {

class Constraint;
class Transformer;

struct EngineOptions {
  bool dense = false;  // MHA over all keys instead of the indexer's top-k
  bool bf16 = false;   // activations, and what is stored plain; else f32
  WeightFormat weights = WeightFormat::plain;
  CacheFormat cache = {};
  bool draft = false;          // the MTP layer guesses a token ahead: the same texts in fewer steps
  bool record = false;         // what the model chose for each token comes with the end of its text
  int64_t max_context = 0;     // tokens of a text, prompt and answer; 0: the model's
  int64_t cache_bytes = 0;     // hard limit, whole pages of 64 tokens; 0: one text of max_context
  int64_t chunk = 256;         // prompt rows of a step, shared by all
  int64_t max_batch = 64;      // sequences at once
  int64_t max_waiting = 1024;  // requests in the queue
  bool check_pages = false;    // the page tree's accounts before each step, for tests: what runs fails where they are wrong
};

struct Request {
  std::vector<int32_t> prompt = {};
  int64_t max_tokens = 200;
  Sampling sampling = {};
  std::vector<int32_t> stop_tokens = {};  // end the text; the token itself is an event too
  int64_t top_log_probs = 0;              // alternatives told with each token
  std::shared_ptr<const Constraint> constraint =
      nullptr;           // what the answer must be a text of; stop tokens may end it where it is one
  int64_t answered = 0;  // last tokens of the prompt that are the answer's beginning, as the constraint sees it
  int priority = 0;      // larger ones are admitted first, and lose their pages last
};

// One generated token. Log-probabilities are the model's own, before penalties, temperature and filters.
struct Token {
  int32_t id = 0;
  float log_prob = 0;
  float kept_log_prob = 0;                     // among `kept`, at the request's temperature: what reinforcement learning needs
  std::vector<std::pair<int32_t, float>> top;  // most likely first
  std::vector<int32_t> kept;                   // what the draw chose among, ascending; empty: everything
};

enum class Finish { stop, length, cancelled, failed };
const char* finish_name(Finish finish);

// Choices of the model for the first tokens of a text, [layers, positions, k]; -1 where there were fewer.
struct Choices {
  int64_t layers = 0, positions = 0, k = 0;
  std::vector<int32_t> ids;
};
// What a training pass repeats to be of one mind with the engine (Replay in model/transformer.h; paper 3.1, "keep routing").
// The last token of a text is never computed, and has none.
struct Record {
  Choices experts;   // of the layers that are mixtures
  Choices selected;  // keys of each layer, by their positions in the text, ascending; none in dense attention
};

// One for each token, and one at the end.
struct Event {
  uint64_t request = 0;
  const Token* token = nullptr;    // of these two
  const Finish* finish = nullptr;  // one is given
  std::string error;               // where it failed
  int64_t cached_tokens = 0;       // of the prompt, found in the page tree
  const Record* record = nullptr;  // at the end, where one was asked for
};
using OnEvent = std::function<void(const Event&)>;

struct EngineStatistics {
  int64_t waiting = 0, running = 0;
  int64_t pages = 0, pages_free = 0, pages_cached = 0;  // the others are held by sequences
  int64_t steps = 0, rows = 0, prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  int64_t preemptions = 0, evictions = 0;
  int64_t experts_needed = 0, experts_present = 0, experts_foreseen = 0;  // of a model larger than memory (model/expert_pager.h)
  int64_t drafted = 0, accepted = 0;  // drafts that were checked, and those that were what the sampler drew
};

// The queue holds max_waiting requests; try again later.
class QueueFull : public InputError {
 public:
  using InputError::InputError;
};

class Engine {
 public:
  // Keeps the weights packed (model/weights.h); what only `model` held of them is freed. Throws InputError when an option is
  // impossible or the memory holds no page.
  Engine(Transformer model, const EngineOptions& options);
  ~Engine();  // cancels what runs
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Throws InputError when the request cannot be served: an id outside the vocabulary, an empty prompt or one longer than the
  // context or the memory, an impossible parameter. Throws QueueFull. Returns the request's number.
  uint64_t submit(Request request, OnEvent on_event);

  // Its last event follows, unless it has ended already.
  void cancel(uint64_t request);

  EngineStatistics statistics() const;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

// Submits and waits. For programs with one request at a time, and tests.
struct Completion {
  std::vector<Token> tokens;
  Finish finish = Finish::stop;
  std::string error;
  int64_t cached_tokens = 0;
  Record record;
};
Completion complete(Engine& engine, Request request, const OnEvent& also = {});

}  // namespace fulgur
