// Drafts change how many steps a text takes, and nothing else: tokens, log-probabilities, alternatives and ends are the same
// bits.
#include <cmath>

#include "fulgur/engine/testing.h"

namespace fulgur {
namespace {

// An MTP layer that always names the token behind the right one.
Weights mistaken(const ModelConfig& c) {
  Weights w = foreseeing(c, 1, 0);
  w.mtp->head = w.lm_head.roll(1, 0);
  return w;
}

class DraftsTest : public EngineFixture {
 protected:
  void use(Weights weights) { model = Transformer(config, std::move(weights)); }

  // Tokens of the crowd with drafts are those without, as far as both were let go on.
  void crowd_equals_itself_without_drafts(EngineOptions options) {
    auto expected = crowd_equals_its_forward_passes(options);
    options.draft = true;
    auto got = crowd_equals_its_forward_passes(options);
    ASSERT_EQ(got.size(), expected.size());
    for (size_t i = 0; i < got.size(); ++i) {
      bool whole = got[i].finish != Finish::cancelled && expected[i].finish != Finish::cancelled;
      if (whole) expect_same(got[i], expected[i]);
      for (size_t t = 0; t < std::min(got[i].tokens.size(), expected[i].tokens.size()); ++t)
        ASSERT_EQ(got[i].tokens[t].id, expected[i].tokens[t].id) << "token " << t << " of request " << i;
    }
    EXPECT_GT(last.accepted, last.drafted / 5);
    EXPECT_LT(last.accepted, last.drafted * 4 / 5);
  }

  // The same request with and without drafts.
  void same_without_drafts(const Request& request, const EngineOptions& options = {}) {
    auto with = options, without = options;
    with.draft = true;
    Engine drafting(model, with), plain(model, without);
    expect_same(complete(drafting, request), complete(plain, request));
    last = drafting.statistics();
    EXPECT_EQ(last.pages_free + last.pages_cached, last.pages);
    EXPECT_EQ(plain.statistics().drafted, 0);
  }

  ModelConfig config = with_mtp(small_config());
};

TEST_F(DraftsTest, EverySequenceEqualsItsForwardPassWhateverHappens) {
  use(foreseeing(config, 1, 0.5));
  for (auto [dense, bf16] : {std::pair{false, false}, {false, true}, {true, false}, {true, true}})
    crowd_equals_itself_without_drafts({.dense = dense, .bf16 = bf16});
  EXPECT_GT(compared, 20000);
}

TEST_F(DraftsTest, PackedWeightsChangeNoBit) {
  config = with_mtp(packed_config());
  use(foreseeing(config, 1, 0.5));
  crowd_equals_itself_without_drafts({.bf16 = true});
}

// Two tokens a step as long as there is room for two; where tokens are drawn from many too, for the noise is the same.
TEST_F(DraftsTest, AnMtpLayerThatIsAlwaysRightHalvesTheSteps) {
  for (auto [temperature, confidence] : {std::pair{0.0, 7.0}, {1.0, 3.0}}) {
    use(foreseeing(config, 1, 0, confidence));
    Request request{.prompt = {20, 21, 22}, .max_tokens = 41, .sampling = {.temperature = temperature}, .top_log_probs = 2};
    same_without_drafts(request);
    EXPECT_EQ(last.steps, 1 + 20);
    EXPECT_EQ(last.drafted, 20);
    EXPECT_EQ(last.accepted, 20);
    EXPECT_EQ(last.rows, 3 + 2 * 20);
    for (request.max_tokens = 1; request.max_tokens < 8; ++request.max_tokens) same_without_drafts(request);
    EXPECT_EQ(last.drafted, 3);
  }
}

TEST_F(DraftsTest, AnMtpLayerThatIsAlwaysWrongCostsARowAndChangesNothing) {
  use(mistaken(config));
  same_without_drafts({.prompt = {20, 21, 22}, .max_tokens = 41, .sampling = {.temperature = 0}, .top_log_probs = 2});
  EXPECT_EQ(last.steps, 41);
  EXPECT_EQ(last.drafted, 39);  // the first token's step has none, and the last would have no room for two
  EXPECT_EQ(last.accepted, 0);
}

TEST_F(DraftsTest, StopTokensLengthsAndContextsEndATextBetweenTwoTokens) {
  use(foreseeing(config, 1, 0));
  Request request{.prompt = {20, 21, 22}, .max_tokens = 100, .sampling = {.temperature = 0}};
  for (int32_t stop = 23; stop < 29; ++stop) {
    request.stop_tokens = {stop};
    same_without_drafts(request);
  }
  request.stop_tokens = {};
  for (int64_t context = 8; context < 12; ++context) {
    same_without_drafts(request, {.max_context = context});
    EXPECT_EQ(last.drafted, (context - 4) / 2);
    same_without_drafts(request, {.max_context = 56 + context, .cache_bytes = page_bytes(config, {.draft = true})});
  }
}

TEST_F(DraftsTest, ACancelledTextEndsBetweenTwoTokens) {
  use(foreseeing(config, 1, 0));
  for (size_t count = 1; count < 7; ++count) {
    Engine engine(model, {.draft = true});
    size_t seen = 0;
    Request request{.prompt = {20, 21, 22}, .max_tokens = 100, .sampling = {.temperature = 0}};
    auto done = complete(engine, request, [&](const Event& event) {
      if (event.token && ++seen == count) engine.cancel(event.request);
    });
    EXPECT_EQ(done.finish, Finish::cancelled);
    EXPECT_EQ(done.tokens.size(), count);
  }
}

// A model that repeats itself, so that each token changes what the penalties take from the next.
TEST_F(DraftsTest, PenaltiesCountTheFirstTokenBeforeTheSecondIsDrawn) {
  use(foreseeing(config, 0, 0.2));
  Request request{.prompt = {20, 21, 22}, .max_tokens = 60, .top_log_probs = 3};
  int64_t accepted = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    request.sampling = {.temperature = seed % 2 ? 0.8 : 0.0, .top_k = 20, .repetition_penalty = 1.05, .seed = seed};
    request.sampling.presence_penalty = 0.5, request.sampling.frequency_penalty = 0.7;
    request.sampling.logit_bias = {{30, 1.5}};
    same_without_drafts(request);
    accepted += last.accepted;
  }
  EXPECT_GT(accepted, 100);
}

TEST_F(DraftsTest, NumbersThatAreNoneFailTheTextTheyAreInAndNoOther) {
  // A draft whose row is not a number, and is forgotten: 30 is guessed behind 28, where 29 comes.
  auto weights = mistaken(config);
  weights.embed_tokens[30].fill_(NAN);
  use(weights);
  Request request{.prompt = {20, 21, 22}, .max_tokens = 7, .sampling = {.temperature = 0}};
  same_without_drafts(request);
  EXPECT_EQ(last.drafted, 5);
  // A right draft whose row is not: the text fails behind it, as it would without.
  weights = foreseeing(config, 1, 0);
  weights.embed_tokens[30].fill_(NAN);
  use(weights);
  for (int32_t first : {22, 23}) {
    request.prompt = {first - 1, first}, request.max_tokens = 30;
    same_without_drafts(request);
    Engine engine(model, {.draft = true});
    EXPECT_EQ(complete(engine, request).finish, Finish::failed);
  }
  // An MTP layer that makes none: no drafts.
  weights = foreseeing(config, 1, 0.5);
  weights.mtp->hnorm.fill_(NAN);
  use(weights);
  same_without_drafts(request);
  EXPECT_EQ(last.drafted, 0);
}

// Three tokens with three likely candidates each: as often as the softmax of the plain forward pass says, drafts right or wrong.
TEST_F(DraftsTest, DrawsFromTheSoftmax) {
  use(foreseeing(config, 1, 0.5, 3));
  constexpr int kSeeds = 3000, kCandidates = 3, kCells = kCandidates * kCandidates * kCandidates;
  std::vector<int32_t> prompt{20, 21, 22};
  std::map<std::vector<int32_t>, double> expected, cooler;
  auto extend = [&](auto& self, std::vector<int32_t> made, double p, double q) -> void {
    if (made.size() == 3) return void((expected[made] = p, cooler[made] = q));
    auto all = prompt;
    all.insert(all.end(), made.begin(), made.end());
    auto hidden = model.forward(pack_documents(at::tensor(all, at::kInt), {int64_t(all.size())}), {});
    auto [logits, tokens] = ops::logits(hidden.narrow(0, hidden.size(0) - 1, 1), model.weights().lm_head)[0].topk(kCandidates);
    auto share = logits.softmax(0), cool = (logits / 0.8).softmax(0);
    for (int i = 0; i < kCandidates; ++i) {
      auto next = made;
      next.push_back(tokens[i].item<int32_t>());
      self(self, next, p * share[i].item<double>(), q * cool[i].item<double>());
    }
  };
  extend(extend, {}, 1, 1);

  Engine engine(model, {.draft = true, .max_waiting = kSeeds});
  std::map<std::vector<int32_t>, int> seen;
  {
    Crowd crowd(engine);
    for (uint64_t seed = 0; seed < kSeeds; ++seed)
      crowd.submit({.prompt = prompt, .max_tokens = 3, .sampling = {.top_k = kCandidates, .seed = seed}});
    crowd.wait();
    for (const auto& one : crowd.all()) {
      std::vector<int32_t> made;
      for (const auto& token : one->done.tokens) made.push_back(token.id);
      EXPECT_TRUE(expected.contains(made));
      ++seen[made];
    }
  }
  auto deviation = [&](const auto& p) {
    double sum = 0;
    for (const auto& [made, share] : p) sum += std::pow(seen[made] - share * kSeeds, 2) / (share * kSeeds);
    return (sum - (kCells - 1)) / std::sqrt(2.0 * (kCells - 1));
  };
  EXPECT_LT(deviation(expected), 3.5);
  EXPECT_GT(deviation(cooler), 10);  // the measure tells distributions apart
  auto s = engine.statistics();
  EXPECT_GT(s.accepted, kSeeds / 10);
  EXPECT_GT(s.drafted - s.accepted, kSeeds / 10);
}

TEST_F(DraftsTest, AreOnlyForModelsWithAnMtpLayer) { EXPECT_THROW(Engine(model, {.draft = true}), InputError); }

}  // namespace
}  // namespace fulgur
