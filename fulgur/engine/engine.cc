#include "fulgur/engine/engine.h"

#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "fulgur/base/threads.h"
#include "fulgur/engine/loop.h"
#include "fulgur/model/expert_pager.h"

namespace fulgur {
namespace {

// Whom the batch would rather keep: the larger priority, then the elder.
bool stronger(const Sequence& a, const Sequence& b) {
  return a.request.priority > b.request.priority || (a.request.priority == b.request.priority && a.id < b.id);
}

Attention attention_of(const EngineOptions& o) { return o.dense ? Attention::dense : Attention::sparse; }
at::ScalarType type_of(const EngineOptions& o) { return o.bf16 ? at::kBFloat16 : at::kFloat; }

Cache make_cache(const ModelConfig& config, const EngineOptions& o, int64_t pages) {
  return {config, attention_of(o), type_of(o), pages, {.mtp = o.draft, .choices = o.record, .format = o.cache}};
}

int64_t page_bytes(const ModelConfig& config, const EngineOptions& o) { return make_cache(config, o, 1).bytes(); }

void check_options(const Transformer& model, const EngineOptions& o) {
  const auto& config = model.config();
  FULGUR_CHECK(o.dense || config.has_indexer(), "[engine] expected a model with an indexer for sparse attention, got ",
               config.model_type, "\n  hint: dense attention");
  FULGUR_CHECK(!o.draft || model.weights().mtp,
               "[engine] draft: expected a model with a multi-token-prediction layer, got none\n  hint: go without drafts");
  FULGUR_CHECK(o.chunk > 0 && o.max_batch > 0 && o.max_waiting > 0 && o.max_context >= 0,
               "[engine] expected a positive chunk, batch, queue and context, got ", o.chunk, ", ", o.max_batch, ", ",
               o.max_waiting, ", ", o.max_context);
  int64_t page = page_bytes(config, o);
  FULGUR_CHECK(o.cache_bytes == 0 || o.cache_bytes >= page, "[engine] cache_bytes: expected room for a page of 64 tokens, ", page,
               " bytes, got ", o.cache_bytes);
}

Transformer packed(Transformer model, const EngineOptions& o) {
  model.weights() = pack_weights(model.config(), std::move(model.weights()), type_of(o), !o.dense, o.weights);
  return model;
}

int64_t context_of(const ModelConfig& config, const EngineOptions& o) {
  int64_t most = config.max_position_embeddings;
  return o.max_context > 0 ? std::min(o.max_context, most) : most;
}

// The constraint's state behind what the prompt has of the answer.
int32_t state_behind(const Constraint& constraint, const Request& request) {
  const auto& prompt = request.prompt;
  FULGUR_CHECK(request.answered >= 0 && request.answered <= int64_t(prompt.size()), "[engine] answered: expected 0 to ",
               prompt.size(), " tokens of the prompt, got ", request.answered);
  int32_t state = constraint.start();
  for (size_t i = prompt.size() - size_t(request.answered); i < prompt.size(); ++i) {
    state = constraint.advance(state, prompt[i]);
    FULGUR_CHECK(state >= 0, "[engine] answered: expected tokens that the constraint allows, got ", prompt[i], " at ", i);
  }
  return state;
}

}  // namespace

const char* finish_name(Finish finish) {
  switch (finish) {
    case Finish::stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::cancelled:
      return "cancelled";
    default:
      return "failed";
  }
}

Engine::Loop::Loop(Transformer model, const EngineOptions& options)
    : options_((check_options(model, options), options)),
      model_(packed(std::move(model), options)),
      pages_(options.cache_bytes > 0 ? options.cache_bytes / page_bytes(model_.config(), options)
                                     : pages_for(context_of(model_.config(), options))),
      max_context_(std::min(context_of(model_.config(), options), pages_ * kPageKeys)),
      cache_(make_cache(model_.config(), options, pages_)),
      tree_(pages_),
      thread_([this] { run(); }) {
  release_workers();  // of packing: the engine's thread has its own
}

uint64_t Engine::Loop::submit(Request request, OnEvent on_event) {
  const auto& config = model_.config();
  int64_t length = int64_t(request.prompt.size());
  FULGUR_CHECK(length > 0, "[engine] prompt: expected at least one token, got none");
  FULGUR_CHECK(length < max_context_, "[engine] prompt: expected fewer than ", max_context_, " tokens (context and memory), got ",
               length);
  for (int32_t id : request.prompt)
    FULGUR_CHECK(id >= 0 && id < config.vocab_size, "[engine] prompt: expected token ids below ", config.vocab_size, ", got ",
                 id);
  FULGUR_CHECK(request.max_tokens > 0, "[engine] max_tokens: expected a positive number, got ", request.max_tokens);
  FULGUR_CHECK(request.top_log_probs >= 0 && request.top_log_probs <= config.vocab_size,
               "[engine] top_log_probs: expected a number from 0 to ", config.vocab_size, ", got ", request.top_log_probs);
  validate(request.sampling, config.vocab_size);
  int32_t constrained = 0;
  if (const auto& constraint = request.constraint) {
    FULGUR_CHECK(constraint->vocab_size() <= config.vocab_size, "[engine] constraint: expected a vocabulary of at most ",
                 config.vocab_size, " tokens, got ", constraint->vocab_size());
    constrained = state_behind(*constraint, request);
    FULGUR_CHECK(!constraint->complete(constrained) || !request.stop_tokens.empty(),
                 "[engine] constraint: expected more text, or a stop token, got a constraint that nothing more fits");
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->tokens = request.prompt;
  if (request.sampling.penalises())
    for (int32_t id : request.prompt) sequence->counts.add(id, /*generated=*/false);
  sequence->constrained = constrained;
  sequence->request = std::move(request), sequence->on_event = std::move(on_event);
  uint64_t id;
  {
    std::lock_guard lock(mutex_);
    if (queued_ >= options_.max_waiting)
      throw QueueFull(cat("[engine] expected at most ", options_.max_waiting, " waiting requests, got one more"),
                      "try again later");
    id = sequence->id = next_id_++;
    inbox_.push_back(std::move(sequence));
    statistics_.waiting = ++queued_;
  }
  wake_.notify_one();
  return id;
}

void Engine::Loop::run() {
  c10::InferenceMode inference;  // no gradients are asked for: what a dispatch costs is a third of a small model's step
  while (take_orders()) {
    try {
      admit();
      make_room();
      if (options_.check_pages) check_pages();
      if (!running_.empty()) step(plan());
    } catch (const std::exception& error) {  // such as no memory: it must not end the engine
      while (!running_.empty()) finish(remove(*running_.back()), Finish::failed, error.what());
      for (auto& sequence : waiting_) let_go(*sequence);  // one may have been half admitted
    }
    publish_statistics();
  }
  for (auto* list : {&waiting_, &running_})
    while (!list->empty()) {
      auto sequence = std::move(list->back());
      list->pop_back();
      finish(std::move(sequence), Finish::cancelled);
    }
}

// New and cancelled requests; waits while there is nothing to do. False: the end.
bool Engine::Loop::take_orders() {
  std::set<uint64_t> cancelled;
  bool arrived;
  {
    std::unique_lock lock(mutex_);
    if (running_.empty() && waiting_.empty()) wake_.wait(lock, [&] { return stop_ || !inbox_.empty() || !cancelled_.empty(); });
    arrived = !inbox_.empty();
    for (auto& sequence : inbox_) waiting_.push_back(std::move(sequence));
    inbox_.clear();
    cancelled.swap(cancelled_);
    if (stop_) return false;
  }
  if (arrived)
    std::stable_sort(waiting_.begin(), waiting_.end(), [](const Owned& a, const Owned& b) { return stronger(*a, *b); });
  if (cancelled.empty()) return true;
  for (auto* list : {&waiting_, &running_})
    for (size_t i = list->size(); i-- > 0;)
      if (Sequence& sequence = *(*list)[i]; cancelled.contains(sequence.id)) finish(remove(sequence), Finish::cancelled);
  return true;
}

// Whether a running sequence is reading text that this one begins with and the tree does not have yet: waiting for it is cheaper
// than reading the text twice.
bool Engine::Loop::will_share(const Sequence& sequence) const {
  for (const auto& other : running_) {
    if (other->missing() == 1) continue;  // it generates
    int64_t shared =
        std::mismatch(sequence.tokens.begin(), sequence.tokens.end() - 1, other->tokens.begin(), other->tokens.end()).first -
        sequence.tokens.begin();
    if (shared / kPageKeys > other->computed / kPageKeys) return true;
  }
  return false;
}

// Each running sequence keeps two pages, or what it may still need, or it would take those of the newly admitted back.
int64_t Engine::Loop::kept_to_grow() const {
  int64_t kept = 0;
  for (const auto& sequence : running_) {
    int64_t wanted = std::min(sequence->request.max_tokens, max_context_);
    int64_t longest = std::min(int64_t(sequence->request.prompt.size()) + wanted, max_context_);
    kept += std::min<int64_t>(2, pages_for(longest) - int64_t(sequence->held.pages.size()));
  }
  return kept;
}

// The strongest first, as long as there is room; who waits for a text that is being read lets others by.
void Engine::Loop::admit() {
  for (size_t i = 0; i < waiting_.size() && int64_t(running_.size()) < options_.max_batch;) {
    Sequence& sequence = *waiting_[i];
    if (will_share(sequence)) {
      ++i;
      continue;
    }
    int64_t kept = kept_to_grow();
    if (sequence.id == blocked_ && tree_.available() - kept <= blocked_room_) return;  // no more room than when it did not fit
    auto match = tree_.match(sequence.tokens, sequence.held);
    sequence.computed = int64_t(sequence.held.path.size()) * kPageKeys;
    if (match.copy) cache_.copy_keys(match.copy->from, match.copy->to, match.copy->count);
    int64_t length = int64_t(sequence.tokens.size()), wanted = pages_for(length) - int64_t(sequence.held.pages.size());
    sequence.computed = match.tokens;
    if (wanted + kept > tree_.available() || !tree_.grow(sequence.held, length)) {
      let_go(sequence);
      blocked_ = sequence.id, blocked_room_ = tree_.available() - kept;
      return;
    }
    if (!sequence.admitted) {
      sequence.admitted = true;
      sequence.cached_tokens = match.tokens;
      now_.prompt_tokens += int64_t(sequence.request.prompt.size()), now_.cached_tokens += match.tokens;
    }
    running_.push_back(std::move(waiting_[i]));
    waiting_.erase(waiting_.begin() + int64_t(i));
  }
}

// Pages for every token, the strongest sequence's first; the weakest give theirs up. Nobody does for a draft.
void Engine::Loop::make_room() {
  std::sort(running_.begin(), running_.end(), [](const Owned& a, const Owned& b) { return stronger(*a, *b); });
  for (size_t i = 0; i < running_.size(); ++i)
    while (i < running_.size() && !tree_.grow(running_[i]->held, int64_t(running_[i]->tokens.size()))) preempt(*running_.back());
  for (const auto& sequence : running_)
    if (sequence->draft && !tree_.grow(sequence->held, int64_t(sequence->tokens.size()) + 1)) sequence->draft.reset();
}

void Engine::Loop::check_pages() const {
  std::vector<const PageTree::Held*> held;
  for (const auto* list : {&running_, &waiting_})
    for (const auto& sequence : *list) held.push_back(&sequence->held);
  tree_.check(held);
}

// A row of each sequence that generates (and of its draft), and `chunk` rows of those that read: the least to read first, but a
// quarter for the eldest, which would else starve behind short ones.
std::vector<Engine::Loop::Part> Engine::Loop::plan() {
  std::vector<Part> parts;
  std::vector<Sequence*> readers;
  for (const auto& sequence : running_) {
    if (sequence->missing() == 1) parts.push_back({sequence.get(), 1});
    else readers.push_back(sequence.get());
  }
  if (readers.empty()) return parts;
  Sequence* eldest = *std::min_element(readers.begin(), readers.end(), [](auto* a, auto* b) { return a->id < b->id; });
  std::stable_sort(readers.begin(), readers.end(), [](const Sequence* a, const Sequence* b) {
    if (a->request.priority != b->request.priority) return a->request.priority > b->request.priority;
    return a->missing() < b->missing();
  });
  int64_t reserved = std::min(eldest->missing(), (options_.chunk + 3) / 4), left = options_.chunk - reserved;
  for (Sequence* reader : readers) {
    int64_t own = reader == eldest ? reserved : 0, rows = std::min(reader->missing(), left + own);
    left -= rows - own;
    if (rows > 0) parts.push_back({reader, rows});
  }
  return parts;
}

// Its pages stay in the tree, as long as there is room, for whoever begins with its text.
void Engine::Loop::let_go(Sequence& sequence) {
  tree_.release(sequence.tokens, sequence.computed, sequence.held);
  sequence.computed = 0;
  sequence.draft.reset();
}

void Engine::Loop::preempt(Sequence& sequence) {
  let_go(sequence);
  ++now_.preemptions;
  auto owned = remove(sequence);
  auto behind = std::find_if(waiting_.begin(), waiting_.end(), [&](const Owned& other) { return stronger(*owned, *other); });
  waiting_.insert(behind, std::move(owned));
}

std::unique_ptr<Sequence> Engine::Loop::remove(Sequence& sequence) {
  for (auto* list : {&running_, &waiting_}) {
    auto at = std::find_if(list->begin(), list->end(), [&](const Owned& owned) { return owned.get() == &sequence; });
    if (at == list->end()) continue;
    auto owned = std::move(*at);
    list->erase(at);
    return owned;
  }
  return nullptr;
}

void Engine::Loop::finish(Owned sequence, Finish how, const std::string& error) {
  Record record;
  if (options_.record) record = recorded(cache_, sequence->held.pages, sequence->computed);
  let_go(*sequence);
  publish_statistics();  // so that they count all of a text once its end is known
  sequence->on_event({.request = sequence->id,
                      .token = nullptr,
                      .finish = &how,
                      .error = error,
                      .cached_tokens = sequence->cached_tokens,
                      .record = options_.record ? &record : nullptr});
}

void Engine::Loop::publish_statistics() {
  auto count = tree_.count();
  now_.waiting = int64_t(waiting_.size()), now_.running = int64_t(running_.size());
  now_.pages = count.pages, now_.pages_free = count.free, now_.pages_cached = count.cached, now_.evictions = count.evictions;
  if (const auto* pager = model_.pager()) {
    auto experts = pager->statistics();
    now_.experts_needed = experts.needed, now_.experts_present = experts.present, now_.experts_foreseen = experts.foreseen;
  }
  std::lock_guard lock(mutex_);
  queued_ = now_.waiting + int64_t(inbox_.size());
  now_.waiting = queued_;
  statistics_ = now_;
}

Engine::Engine(Transformer model, const EngineOptions& options) : loop_(std::make_unique<Loop>(std::move(model), options)) {}
Engine::~Engine() = default;
uint64_t Engine::submit(Request request, OnEvent on_event) { return loop_->submit(std::move(request), std::move(on_event)); }
void Engine::cancel(uint64_t request) { loop_->cancel(request); }
EngineStatistics Engine::statistics() const { return loop_->statistics(); }

Completion complete(Engine& engine, Request request, const OnEvent& also) {
  Completion out;
  std::mutex mutex;
  std::condition_variable ended;
  bool done = false;
  engine.submit(std::move(request), [&](const Event& event) {
    if (also) also(event);
    std::lock_guard lock(mutex);
    if (event.token) out.tokens.push_back(*event.token);
    if (!event.finish) return;
    out.finish = *event.finish, out.error = event.error, out.cached_tokens = event.cached_tokens;
    if (event.record) out.record = *event.record;
    done = true;
    ended.notify_one();
  });
  std::unique_lock lock(mutex);
  ended.wait(lock, [&] { return done; });
  return out;
}

}  // namespace fulgur
