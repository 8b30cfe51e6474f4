// What a sequence gets does not depend on its company: every one equals the plain forward pass over its own text, bit for bit.
#include "fulgur/engine/testing.h"

namespace fulgur {
namespace {

using EngineTest = EngineFixture;

TEST_F(EngineTest, EverySequenceEqualsItsForwardPassWhateverHappens) {
  for (auto [dense, bf16] : {std::pair{false, false}, {false, true}, {true, false}})
    crowd_equals_its_forward_passes({.dense = dense, .bf16 = bf16});
  EXPECT_GT(compared, 8000);
}

TEST_F(EngineTest, PackedWeightsChangeNoBit) {
  model = Transformer(packed_config(), init_weights(packed_config(), 8));
  for (auto [dense, bf16] : {std::pair{false, false}, {false, true}, {true, true}})
    crowd_equals_its_forward_passes({.dense = dense, .bf16 = bf16});
  EXPECT_GT(compared, 8000);
}

TEST_F(EngineTest, ASeedGivesTheSameTextInAnyBatch) {
  RandomStream random(3, "seed");
  Request request{.prompt = text(random, 70), .max_tokens = 40, .sampling = {.top_p = 0.95, .seed = 5}, .top_log_probs = 3};
  Engine alone(model, {.chunk = 7}), busy(model, {.cache_bytes = 40 * page_bytes(small_config()), .chunk = 64});
  auto expected = complete(alone, request);
  Crowd crowd(busy);
  for (int i = 0; i < 8; ++i) crowd.submit({.prompt = text(random, 30 + 20 * i), .max_tokens = 60});
  auto got = complete(busy, request);
  ASSERT_EQ(got.tokens.size(), 40u);
  for (size_t i = 0; i < 40; ++i) {
    EXPECT_EQ(got.tokens[i].id, expected.tokens[i].id);
    EXPECT_EQ(got.tokens[i].top, expected.tokens[i].top);
    EXPECT_EQ(got.tokens[i].kept, expected.tokens[i].kept);
    EXPECT_EQ(got.tokens[i].top.size(), 3u);
    EXPECT_FALSE(got.tokens[i].kept.empty());
  }
}

TEST_F(EngineTest, ABeginningIsReadOnce) {
  RandomStream random(4, "prefix");
  Engine engine(model, {});
  auto prompt = text(random, 300);
  EXPECT_EQ(complete(engine, {.prompt = prompt, .max_tokens = 5}).cached_tokens, 0);
  EXPECT_EQ(complete(engine, {.prompt = prompt, .max_tokens = 5}).cached_tokens, 299);
  prompt.resize(270);
  EXPECT_EQ(complete(engine, {.prompt = prompt, .max_tokens = 5}).cached_tokens, 269);
  // Sixteen of one prompt at once: one reads it.
  auto shared = text(random, 200);
  int64_t before = engine.statistics().rows;
  Crowd crowd(engine);
  for (int i = 0; i < 16; ++i) crowd.submit({.prompt = shared, .max_tokens = 2, .sampling = {.seed = uint64_t(i)}});
  crowd.wait();
  EXPECT_LT(engine.statistics().rows - before, 200 + 16 * (8 + 2));
  for (const auto& one : crowd.all()) expect_same_bits(*one, {});
}

TEST_F(EngineTest, StopTokensAndLengthsEndATextAndFullContextsToo) {
  RandomStream random(5, "stop");
  Engine engine(model, {.max_context = 100});
  Request request{.prompt = text(random, 20), .max_tokens = 30, .sampling = {.temperature = 0}};
  auto free = complete(engine, request);
  EXPECT_EQ(free.finish, Finish::length);
  ASSERT_EQ(free.tokens.size(), 30u);
  request.stop_tokens = {free.tokens[10].id};
  auto stopped = complete(engine, request);
  EXPECT_EQ(stopped.finish, Finish::stop);
  EXPECT_LE(stopped.tokens.size(), 11u);
  EXPECT_EQ(stopped.tokens.back().id, free.tokens[10].id);
  request.stop_tokens = {}, request.max_tokens = 1000;
  auto full = complete(engine, request);
  EXPECT_EQ(full.finish, Finish::length);
  EXPECT_EQ(full.tokens.size(), 80u);
}

// A sequence that generates gets a token each step, so its tokens count the steps: the short request's first token comes with the
// second step after it was submitted, while the long prompt is being read.
TEST_F(EngineTest, AShortRequestDoesNotWaitForALongPrompt) {
  RandomStream random(6, "long");
  Engine engine(model, {.cache_bytes = 32 * page_bytes(small_config()), .chunk = 16});
  Crowd crowd(engine);
  auto short_prompt = text(random, 10), long_prompt = text(random, 500);
  int64_t steps = 0, submitted = 0, answered = 0, long_answered = 0;  // of the engine's thread until it is done
  crowd.submit({.prompt = {1}, .max_tokens = 60}, [&](const Event& event) {
    if (!event.token || ++steps != 5) return;
    submitted = steps;
    crowd.submit({.prompt = long_prompt, .max_tokens = 1});  // waits for the text to be read, and lets others by
    crowd.submit({.prompt = short_prompt, .max_tokens = 1}, [&](const Event& event) {
      if (event.token) answered = steps;
    });
  });
  crowd.submit({.prompt = long_prompt, .max_tokens = 1}, [&](const Event& event) {
    if (event.token) long_answered = steps;
  });
  crowd.wait();
  EXPECT_EQ(submitted, 5);
  EXPECT_LE(answered - submitted, 2);
  EXPECT_GT(long_answered, 30);  // its 500 tokens, 16 a step
}

TEST_F(EngineTest, MistakesAreNamedAndOthersGoOn) {
  Engine engine(model, {.cache_bytes = 2 * page_bytes(small_config()), .max_waiting = 2});
  auto message = [&](const Request& request) -> std::string {
    try {
      complete(engine, request);
    } catch (const InputError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message({}).find("prompt: expected at least one token"), std::string::npos);
  EXPECT_NE(message({.prompt = {1, 211}}).find("expected token ids below 211, got 211"), std::string::npos);
  EXPECT_NE(message({.prompt = {-1}}).find("got -1"), std::string::npos);
  EXPECT_NE(message({.prompt = std::vector<int32_t>(128, 1)}).find("fewer than 128 tokens (context and memory), got 128"),
            std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .max_tokens = 0}).find("max_tokens"), std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .sampling = {.top_p = 2}}).find("top_p"), std::string::npos);
  EXPECT_NE(message({.prompt = {1}, .top_log_probs = -1}).find("top_log_probs"), std::string::npos);
  EXPECT_EQ(complete(engine, {.prompt = {1}, .max_tokens = 3}).tokens.size(), 3u);
  EXPECT_THROW(Engine(model, {.cache_bytes = 10}), InputError);
  EXPECT_THROW(Engine(model, {.chunk = 0}), InputError);
  Crowd crowd(engine);
  EXPECT_THROW(for (int i = 0; i < 100; ++i) crowd.submit({.prompt = {int32_t(i)}, .max_tokens = 100}), QueueFull);
}

TEST_F(EngineTest, LogitsThatAreNotNumbersFailTheirSequence) {
  auto weights = init_weights(small_config(), 7);
  weights.embed_tokens[5].fill_(NAN);
  Transformer broken(small_config(), std::move(weights));
  Engine engine(broken, {});
  auto bad = complete(engine, {.prompt = {4, 5}, .max_tokens = 3});
  EXPECT_EQ(bad.finish, Finish::failed);
  EXPECT_NE(bad.error.find("finite logits"), std::string::npos);
  EXPECT_EQ(complete(engine, {.prompt = {4, 6}, .max_tokens = 1, .sampling = {.logit_bias = {{5, -100}}}}).finish,
            Finish::length);
}

TEST_F(EngineTest, EndingTheEngineCancelsWhatRuns) {
  Completion done;
  {
    Engine engine(model, {});
    engine.submit({.prompt = {1}, .max_tokens = 400}, [&](const Event& event) {
      if (event.finish) done.finish = *event.finish;
    });
  }
  EXPECT_EQ(done.finish, Finish::cancelled);
}

}  // namespace
}  // namespace fulgur
