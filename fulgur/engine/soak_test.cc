// Threads that submit and cancel at random, engine after engine in every format, in caches too small for what they ask: each
// text equals its forward pass and what it would be alone, and no page is lost. FULGUR_SOAK_SECONDS says how long.
#include <chrono>
#include <cstdio>
#include <deque>

#include "fulgur/engine/testing.h"

namespace fulgur {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr int kSubmitters = 3, kCheckers = 2;

double seconds_to_soak() {
  const char* given = std::getenv("FULGUR_SOAK_SECONDS");
  return given ? std::stod(given) : 6;
}

// Sixteen engines have all formats of weights with all of the cache.
EngineOptions options_of(int64_t number, RandomStream& random) {
  EngineOptions o{.dense = number % 5 == 4, .bf16 = random.below(2) == 1, .check_pages = true};
  o.weights = weight_format(kWeightFormats[number % 4]);
  if (!o.dense) o.cache = cache_format(kCacheFormats[(number + number / 4) % 4]);
  o.draft = random.below(3) > 0, o.record = random.below(3) == 0;
  o.chunk = 5 + int64_t(random.below(90)), o.max_batch = 3 + int64_t(random.below(6));
  o.max_waiting = 4 + int64_t(random.below(20));
  if (random.below(3) == 0) o.max_context = 360 + int64_t(random.below(150));
  return o;
}

Sampling some_sampling(RandomStream& random) {
  Sampling s{.seed = random.bits()};
  auto sometimes = [&] { return random.below(4) == 0; };
  s.temperature = sometimes() ? 0 : 0.5 + random.uniform();
  if (sometimes()) s.top_k = 1 + int64_t(random.below(30));
  if (sometimes()) s.top_p = 0.5 + random.uniform() / 2;
  if (sometimes()) s.min_p = random.uniform() / 10;
  if (sometimes()) s.repetition_penalty = 0.8 + random.uniform();
  if (sometimes()) s.presence_penalty = random.uniform(), s.frequency_penalty = random.uniform() - 0.3;
  for (int i = 0; i < 3 && sometimes(); ++i) s.logit_bias.push_back({int32_t(random.below(kVocab)), 4 * random.uniform() - 2});
  return s;
}

// Half of the prompts begin as others do, at times with all of another one.
Request some_request(RandomStream& random, const std::vector<std::vector<int32_t>>& stems) {
  Request r;
  if (random.below(2) == 0) {
    r.prompt = stems[random.below(stems.size())];
    if (random.below(2) == 0) r.prompt.resize(1 + random.below(r.prompt.size()));
  }
  if (r.prompt.empty() || random.below(4) > 0) {
    auto tail = text(random, 1 + int64_t(random.below(random.below(2) == 0 ? 150 : 20)));
    r.prompt.insert(r.prompt.end(), tail.begin(), tail.end());
  }
  r.max_tokens = random.below(2) == 0 ? 100 + int64_t(random.below(350)) : 1 + int64_t(random.below(60));
  r.sampling = some_sampling(random);
  for (int i = 0; i < 3 && random.below(3) == 0; ++i) r.stop_tokens.push_back(int32_t(random.below(kVocab)));
  r.top_log_probs = random.below(4) == 0 ? 1 + int64_t(random.below(5)) : 0;
  r.priority = int(random.below(3));
  return r;
}

// What the threads count; the engine's own figures must agree.
struct Tally {
  std::atomic<int64_t> submitted = 0, queue_full = 0, refused = 0;
  std::atomic<int64_t> ends[4] = {}, tokens = 0, cached_tokens = 0;
  std::atomic<int64_t> alone = 0, records = 0;
  int64_t ended() const { return ends[0] + ends[1] + ends[2] + ends[3]; }
};

// Texts that ended and are to be checked. Who submits waits while there are many, so that memory stays small.
class Ended {
 public:
  using One = std::shared_ptr<Crowd::One>;
  void add(One one) {
    std::lock_guard lock(mutex_);
    all_.push_back(std::move(one));
    change_.notify_all();
  }
  // Null: there will be no more.
  One take() {
    std::unique_lock lock(mutex_);
    change_.wait(lock, [&] { return closed_ || !all_.empty(); });
    if (all_.empty()) return nullptr;
    auto one = std::move(all_.front());
    all_.pop_front();
    change_.notify_all();
    return one;
  }
  void wait_for_few() {
    std::unique_lock lock(mutex_);
    change_.wait(lock, [&] { return all_.size() < 30; });
  }
  void close() {
    std::lock_guard lock(mutex_);
    closed_ = true;
    change_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable change_;
  std::deque<One> all_;
  bool closed_ = false;
};

// One thread's requests: bursts and pauses, some cancelled at once, by an event of their own, or later.
class Submitter {
 public:
  Submitter(Engine& engine, Crowd& crowd, const std::vector<std::vector<int32_t>>& stems, Tally& tally, uint64_t seed)
      : engine_(engine),
        crowd_(crowd),
        stems_(stems),
        tally_(tally),
        random_(seed, "submitter") {}

  void run_until(Clock::time_point end, Ended& ended) {
    while (Clock::now() < end) {
      for (auto burst = 1 + random_.below(6); burst-- > 0;) submit();
      pause(random_.below(20) == 0 ? 300 : 40);
      cancel_some();
      ended.wait_for_few();
    }
  }
  void submit() {
    auto request = some_request(random_, stems_);
    bool bad = random_.below(50) == 0;
    if (bad) request.prompt.push_back(-1);
    int64_t how = int64_t(random_.below(10));  // 0: cancelled at once, 1: by an event, 2: later, perhaps when it has ended
    auto also = [&engine = engine_, how, left = 1 + random_.below(20)](const Event& event) mutable {
      if (event.token && how == 1 && --left == 0) engine.cancel(event.request);
      EXPECT_TRUE(how <= 2 || !event.finish || *event.finish != Finish::cancelled) << "nobody cancelled this";
    };
    try {
      auto id = crowd_.submit(std::move(request), also);
      EXPECT_FALSE(bad);
      ++tally_.submitted;
      if (how == 0) engine_.cancel(id);
      if (how == 2) later_.push_back(id);
    } catch (const QueueFull&) {
      ++tally_.queue_full;
      pause(40);
    } catch (const InputError& error) {
      EXPECT_TRUE(bad) << error.what();
      ++tally_.refused;
    }
  }

 private:
  void pause(uint64_t most_ms) { std::this_thread::sleep_for(milliseconds(random_.below(most_ms))); }
  void cancel_some() {
    std::erase_if(later_, [&](uint64_t id) {
      bool now = random_.below(3) == 0;
      if (now) engine_.cancel(id);
      return now;
    });
    if (random_.below(20) == 0) engine_.cancel(1'000'000'000);  // nobody's
  }

  Engine& engine_;
  Crowd& crowd_;
  const std::vector<std::vector<int32_t>>& stems_;
  Tally& tally_;
  RandomStream random_;
  std::vector<uint64_t> later_;
};

class Soak : public EngineFixture {
 protected:
  // One engine for so long, and all that is asked of it.
  void soak(int64_t number, double seconds);

  void choose_model(const EngineOptions& o, RandomStream& random) {
    bool plain = o.weights == WeightFormat::plain && o.cache.plain();
    auto config = plain && random.below(2) == 0 ? with_mtp(small_config()) : formats_config();
    model = Transformer(config, foreseeing(config, 1, 0.5));
  }
  void run(Engine& engine, Crowd& crowd, Ended& ended, double seconds, uint64_t seed);
  void check(const Crowd::One& one, const EngineOptions& o, Engine& alone, RandomStream& random);
  void account(int64_t number, const EngineOptions& o, const EngineStatistics& s);
  void end_at_work(std::unique_ptr<Engine> engine, RandomStream& random);

  std::unique_ptr<Tally> tally;
  std::mutex alone_mutex;
  EngineStatistics sum;
  int64_t requests = 0, alone_texts = 0;
};

// Submits until the time is over, and waits for the last.
void Soak::run(Engine& engine, Crowd& crowd, Ended& ended, double seconds, uint64_t seed) {
  RandomStream random(seed, "stems");
  std::vector<std::vector<int32_t>> stems;
  for (int64_t length : {200, 150, 70, 64}) stems.push_back(text(random, length));
  auto end = Clock::now() + milliseconds(int64_t(seconds * 1000));
  std::vector<std::thread> threads;
  for (int i = 0; i < kSubmitters; ++i)
    threads.emplace_back([&, i] { Submitter(engine, crowd, stems, *tally, kSubmitters * seed + i).run_until(end, ended); });
  for (auto& thread : threads) thread.join();
  crowd.wait();
}

void Soak::check(const Crowd::One& one, const EngineOptions& o, Engine& alone, RandomStream& random) {
  const Request& request = one.request;
  const Completion& done = one.done;
  ++tally->ends[int(done.finish)], tally->tokens += int64_t(done.tokens.size()), tally->cached_tokens += done.cached_tokens;
  EXPECT_NE(done.finish, Finish::failed) << done.error;
  auto stops = [&](const Token& token) { return std::ranges::count(request.stop_tokens, token.id) > 0; };
  auto first_stop = std::ranges::find_if(done.tokens, stops);
  EXPECT_EQ(done.finish == Finish::stop, first_stop != done.tokens.end());
  EXPECT_TRUE(done.finish != Finish::stop || first_stop == done.tokens.end() - 1);
  int64_t made = int64_t(done.tokens.size()), length = int64_t(request.prompt.size()) + made;
  EXPECT_TRUE(done.finish != Finish::length || made == request.max_tokens || length == o.max_context);
  Trace trace;
  expect_same_bits(one, o, o.record ? &trace : nullptr);
  if (o.record) expect_chosen(done.record, trace, model.config(), !o.dense), ++tally->records;
  if (done.tokens.empty() || random.below(4) > 0) return;
  std::lock_guard lock(alone_mutex);
  auto solo = complete(alone, request);
  expect_same_tokens(done, solo, done.tokens.size());
  EXPECT_TRUE(done.finish == Finish::cancelled || solo.tokens.size() == done.tokens.size());
  ++tally->alone;
}

std::string name_of(const EngineOptions& o) {
  auto same = [&](const std::string& name) {
    auto format = cache_format(name);
    return format.latents == o.cache.latents && format.index == o.cache.index;
  };
  return cat(o.dense ? "dense" : "sparse", o.bf16 ? " bf16" : " f32", ", weights ", kWeightFormats[size_t(o.weights)], ", cache ",
             *std::ranges::find_if(kCacheFormats, same), o.draft ? ", drafts" : "", o.record ? ", records" : "");
}

void Soak::account(int64_t number, const EngineOptions& o, const EngineStatistics& s) {
  EXPECT_EQ(s.pages_free + s.pages_cached, s.pages) << "a page is lost";
  EXPECT_EQ(s.waiting + s.running, 0);
  EXPECT_EQ(s.generated_tokens, tally->tokens);
  EXPECT_EQ(s.cached_tokens, tally->cached_tokens);
  EXPECT_EQ(tally->ended(), tally->submitted);
  EXPECT_TRUE(o.draft || s.drafted == 0);
  sum.preemptions += s.preemptions, sum.evictions += s.evictions, sum.cached_tokens += s.cached_tokens;
  sum.drafted += s.drafted, sum.accepted += s.accepted;
  requests += tally->submitted, alone_texts += tally->alone;
  auto ends = [&](Finish finish) { return cat(tally->ends[int(finish)].load(), " ", finish_name(finish)); };
  const Tally& t = *tally;
  auto line = cat("engine ", number, ", ", name_of(o), ": ", s.pages, " pages = ", s.pages_free, " free + ", s.pages_cached,
                  " cached; ", t.submitted, " requests = ", ends(Finish::length), " + ", ends(Finish::stop), " + ",
                  ends(Finish::cancelled), " + ", ends(Finish::failed), ", ", t.queue_full, " met a full queue, ", t.refused,
                  " refused; ", s.preemptions, " preemptions, ", s.evictions, " evictions; ", s.cached_tokens, " of ",
                  s.prompt_tokens, " prompt tokens cached; ", s.accepted, " of ", s.drafted, " drafts; ", t.tokens,
                  " log-probabilities, ", t.alone, " texts alone, ", t.records, " records\n");
  std::fputs(line.c_str(), stdout);
  std::fflush(stdout);
}

// What an engine has not done when it goes is cancelled.
void Soak::end_at_work(std::unique_ptr<Engine> engine, RandomStream& random) {
  Crowd crowd(*engine);
  for (int i = 0; i < 4; ++i) crowd.submit({.prompt = text(random, 30), .max_tokens = 1 + int64_t(random.below(200))});
  engine.reset();
  for (const auto& one : crowd.all()) EXPECT_TRUE(one->ended);
}

void Soak::soak(int64_t number, double seconds) {
  tally = std::make_unique<Tally>();
  RandomStream random(uint64_t(number), "engine");
  auto options = options_of(number, random);
  choose_model(options, random);
  stored_as(options);
  int64_t pages = 7 + int64_t(random.below(5));
  options.cache_bytes = pages * page_bytes(model.config(), options);
  int64_t most = model.config().max_position_embeddings;
  options.max_context = std::min(options.max_context > 0 ? options.max_context : most, pages * 64);  // what memory says anyhow
  auto alone_options = options;
  alone_options.draft = alone_options.record = false, alone_options.cache_bytes = 0, alone_options.max_batch = 1;
  Engine alone(model, alone_options);
  auto engine = std::make_unique<Engine>(model, options);
  Ended ended;
  std::vector<std::thread> checkers;
  for (int i = 0; i < kCheckers; ++i)
    checkers.emplace_back([&, i] {
      c10::AutoGradMode no_grad(false);
      RandomStream own(uint64_t(kCheckers * number + i), "checker");
      while (auto one = ended.take()) check(*one, options, alone, own);
    });
  {
    Crowd crowd(*engine, [&](Ended::One one) { ended.add(std::move(one)); });
    run(*engine, crowd, ended, seconds, uint64_t(number));
  }
  ended.close();
  for (auto& checker : checkers) checker.join();
  account(number, options, engine->statistics());
  end_at_work(std::move(engine), random);
}

TEST_F(Soak, EveryTextIsWhatItWouldBeAloneAndNoPageIsLost) {
  auto end = Clock::now() + milliseconds(int64_t(seconds_to_soak() * 1000));
  double each = std::clamp(seconds_to_soak() / 8, 0.5, 10.0);
  int64_t engines = 0;
  while ((Clock::now() < end || engines < 3) && !HasFailure()) soak(engines++, each);
  auto line = cat("soak: ", engines, " engines, ", requests, " requests, ", compared, " log-probabilities and ", alone_texts,
                  " texts alone equal, ", sum.preemptions, " preemptions, ", sum.evictions, " evictions\n");
  std::fputs(HasFailure() ? "soak: failed\n" : line.c_str(), stdout);
  EXPECT_GT(compared, 1000);
  EXPECT_GT(sum.preemptions, 0);
  EXPECT_GT(sum.evictions, 0);
  EXPECT_GT(sum.cached_tokens, 0);
  EXPECT_GT(sum.accepted, 0);
  EXPECT_LT(sum.accepted, sum.drafted);
}

}  // namespace
}  // namespace fulgur
