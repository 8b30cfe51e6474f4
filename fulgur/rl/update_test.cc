// Rollouts of a small random model, and the trainer's view of them: the same log-probabilities, to the bit.
#include "fulgur/rl/update.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include "fulgur/base/threads.h"
#include "fulgur/engine/testing.h"
#include "fulgur/io/safetensors.h"
#include "fulgur/rl/batch_file.h"
#include "fulgur/rl/collector.h"
#include "fulgur/text/train_bpe.h"

namespace fulgur {
namespace {

using testing::HasSubstr;

class UpdateTest : public testing::Test {
 protected:
  UpdateTest() {
    config.vocab_size = tokenizer.vocab_size();
    config.index_topk = 16;  // fewer than the keys of every text here
    validate(config, "small");
    model = Transformer(config, init_weights(config, 7));
    rl.top_p = 0.9, rl.max_tokens = 60, rl.group = 8;
  }

  // Tokens by bytes and the format's own words.
  static Vocabulary vocabulary() {
    BpeOptions options{.vocab_size = 277, .special_tokens = v32_special_tokens(), .added_tokens = v32_fixed_texts()};
    return vocabulary_of(train_bpe({}, options), options, deepseek_patterns());
  }

  // A group of attempts at each of some tasks; random words end with EOS now and then, and guesses then meet an answer.
  std::vector<Attempt> attempts(int64_t tasks = 4) const {
    std::vector<Attempt> out;
    for (int64_t t = 0; t < tasks; ++t) {
      const Family& of = family(t % 2 ? "guess" : "reverse");
      auto task = of.task(Split::train, 1, uint64_t(t));
      for (int64_t i = 0; i < rl.group; ++i) out.push_back({&of, task, uint64_t(100 * t + i)});
    }
    return out;
  }
  std::vector<Member> rolled_out(EngineOptions options) {
    auto todo = attempts();
    Engine engine(model, options);
    return roll_out(engine, tokenizer, todo, rollout_options(rl, &tokenizer), /*version=*/0);
  }
  std::vector<Member> rolled_out() { return rolled_out(engine_options(rl, config, 4 * rl.group)); }
  std::vector<UpdatePart> parts_of(const std::vector<Member>& members) const {
    std::vector<UpdatePart> parts(members.size() / rl.group);
    for (size_t i = 0; i < members.size(); ++i) {
      auto& part = parts[i / rl.group];
      part.members.push_back(&members[i]), part.advantage.push_back(i % 3 ? 0.5 : -1);
    }
    return parts;
  }
  UpdateSums update(const std::vector<UpdatePart>& parts, int64_t version = 0) {
    for (auto& p : parameters(model.weights())) p.tensor->requires_grad_(p.trained()).mutable_grad() = at::Tensor();
    return accumulate_policy_gradients(model, rl, parts, version, nullptr, alone);
  }
  std::vector<at::Tensor> gradients() {
    std::vector<at::Tensor> out;
    for (auto& p : parameters(model.weights())) out.push_back(p.tensor->grad());
    return out;
  }

  Tokenizer tokenizer{vocabulary()};
  ModelConfig config = small_config();
  Transformer model{config, init_weights(config, 7)};
  RlConfig rl;
  ProcessGroup alone;
};

TEST_F(UpdateTest, LogProbabilitiesAreTheSamplersToTheBit) {
  for (std::string dtype : {"f32", "bf16"})
    for (double temperature : {1.0, 0.7})
      for (bool keep : {true, false}) {
        rl.dtype = dtype, rl.temperature = temperature, rl.keep_routing = rl.keep_selection = keep;
        auto members = rolled_out();
        auto sums = update(parts_of(members));
        EXPECT_EQ(sums.match.mismatch, 0) << dtype << temperature << keep;
        int64_t sampled = 0;
        for (const auto& m : members) sampled += m.sampled();
        EXPECT_EQ(sums.match.tokens, double(sampled));
        EXPECT_GT(sampled, 300);
      }
}

TEST_F(UpdateTest, AttemptsHaveSeveralSegmentsAndAllTheirChoices) {
  auto members = rolled_out();
  int64_t segments = 0, answered = 0;
  for (const auto& m : members) {
    segments = std::max(segments, int64_t(m.segments.size()));
    answered += m.end == "answered";
    for (const auto& s : m.segments) {
      ASSERT_EQ(s.record.experts.positions, int64_t(s.tokens.size()) - 1);
      ASSERT_EQ(s.record.selected.positions, int64_t(s.tokens.size()) - 1);
      ASSERT_EQ(s.kept_offsets.size(), s.drawn.size() + 1);
      ASSERT_FALSE(s.drawn.empty());
      EXPECT_EQ(s.drawn.back(), int64_t(s.tokens.size()) - 1);
      EXPECT_GT(s.tokens.size(), 16u);  // more keys than are selected
    }
  }
  EXPECT_GT(segments, 1);
  EXPECT_GT(answered, 0);
}

TEST_F(UpdateTest, RolloutsDoNotDependOnHowTheyAreBatched) {
  auto expected = rolled_out();
  auto options = engine_options(rl, config, 4 * rl.group);
  options.max_batch = 3, options.chunk = 7, options.cache_bytes /= 8;
  auto got = rolled_out(options);
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(got[i].segments.size(), expected[i].segments.size());
    EXPECT_EQ(got[i].outcome, expected[i].outcome);
    for (size_t j = 0; j < got[i].segments.size(); ++j) {
      const auto &a = got[i].segments[j], &b = expected[i].segments[j];
      EXPECT_EQ(a.tokens, b.tokens);
      EXPECT_EQ(a.log_prob, b.log_prob);
      EXPECT_EQ(a.kept, b.kept);
      EXPECT_EQ(a.record.experts.ids, b.record.experts.ids);
      EXPECT_EQ(a.record.selected.ids, b.record.selected.ids);
    }
  }
}

void expect_equal(const Member& a, const Member& b) {
  EXPECT_EQ(a.end, b.end);
  EXPECT_EQ(a.outcome, b.outcome);
  EXPECT_EQ(a.conversation.size(), b.conversation.size());
  EXPECT_EQ(a.unfinished, b.unfinished);
  EXPECT_EQ(a.attempt.key, b.attempt.key);
  EXPECT_EQ(a.attempt.seed, b.attempt.seed);
  EXPECT_EQ(a.attempt.task.data, b.attempt.task.data);
  ASSERT_EQ(a.segments.size(), b.segments.size());
  for (size_t i = 0; i < a.segments.size(); ++i) {
    const auto &s = a.segments[i], &t = b.segments[i];
    EXPECT_EQ(s.tokens, t.tokens);
    EXPECT_EQ(s.drawn, t.drawn);
    EXPECT_EQ(s.log_prob, t.log_prob);
    EXPECT_EQ(s.kept_mass, t.kept_mass);
    EXPECT_EQ(s.version, t.version);
    EXPECT_EQ(s.kept_offsets, t.kept_offsets);
    EXPECT_EQ(s.kept, t.kept);
    EXPECT_EQ(s.record.experts.positions, t.record.experts.positions);
    EXPECT_EQ(s.record.experts.ids, t.record.experts.ids);
    EXPECT_EQ(s.record.selected.ids, t.record.selected.ids);
  }
}

TEST_F(UpdateTest, ManyTurnsMakeTheEpisodesOfOneGo) {
  for (auto [tokens, grammar] : {std::pair(5, false), {16, false}, {7, true}}) {
    rl.grammar = grammar;
    auto expected = rolled_out();
    std::vector<Member> members;
    for (auto& attempt : attempts()) members.push_back({.attempt = attempt});
    int turns = 0;
    for (bool goes_on = true; goes_on; ++turns) {
      std::vector<Turn> turn;
      for (auto& member : members)
        if (member.end.empty()) turn.push_back({&member, tokens});
      goes_on = !turn.empty();
      Engine engine(model, engine_options(rl, config, int64_t(members.size())));
      if (goes_on) roll_on(engine, tokenizer, rollout_options(rl, &tokenizer), /*version=*/0, turn);
    }
    EXPECT_GE(turns, rl.max_tokens / tokens);
    for (size_t i = 0; i < members.size(); ++i) expect_equal(members[i], expected[i]);
  }
}

// What an engine with other weights draws later leaves what was drawn before, and its choices, alone.
TEST_F(UpdateTest, EpisodesGoOnUnderOtherWeights) {
  std::vector<Member> members;
  for (auto& attempt : attempts()) members.push_back({.attempt = attempt});
  std::vector<Turn> turns;
  for (auto& member : members) turns.push_back({&member, 20});
  auto options = engine_options(rl, config, int64_t(members.size()));
  {
    Engine engine(model, options);
    roll_on(engine, tokenizer, rollout_options(rl, &tokenizer), /*version=*/0, turns);
  }
  auto before = members;
  model = Transformer(config, init_weights(config, 8));
  std::erase_if(turns, [](const Turn& turn) { return !turn.member->end.empty(); });
  ASSERT_GT(turns.size(), 4u);
  for (auto& turn : turns) turn.tokens = 0;
  Engine engine(model, options);
  roll_on(engine, tokenizer, rollout_options(rl, &tokenizer), /*version=*/1, turns);
  size_t later = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    const auto &then = before[i].segments[0], &now = members[i].segments[0];
    ASSERT_LE(then.record.selected.positions, now.record.selected.positions);
    EXPECT_TRUE(std::equal(then.log_prob.begin(), then.log_prob.end(), now.log_prob.begin()));
    int64_t k = then.record.experts.k * then.record.experts.positions;
    EXPECT_TRUE(std::equal(then.record.experts.ids.begin(), then.record.experts.ids.begin() + k, now.record.experts.ids.begin()));
    EXPECT_EQ(now.record.selected.positions, int64_t(now.tokens.size()) - 1);
    later += now.version.back() == 1;
  }
  EXPECT_GT(later, 4u);
  std::vector<const Member*> ended;
  for (const auto& turn : turns) ended.push_back(turn.member);
  auto match = match_own_version(model, rl, ended, /*version=*/1);
  EXPECT_EQ(match.mismatch, 0);
  EXPECT_GT(match.tokens, 100);
  model = Transformer(config, init_weights(config, 9));
  EXPECT_THROW(match_own_version(model, rl, ended, /*version=*/1), InputError);
}

TEST_F(UpdateTest, BatchFilesKeepAllOfAMember) {
  auto members = rolled_out();
  members[0].outcome = invalid_outcome("judge: gone", {{"prompt", "p"}});
  members[1].attempt.key = "3.1+2.4";
  std::vector<const Member*> all;
  for (const auto& member : members) all.push_back(&member);
  auto path = std::filesystem::path(testing::TempDir()) / "batch.safetensors";
  write_batch(path, all);
  auto read = read_batch(path, config);
  ASSERT_EQ(read.size(), members.size());
  for (size_t i = 0; i < members.size(); ++i) expect_equal(read[i], members[i]);

  auto says = [&](const std::string& name, auto change) {
    auto tensors = read_safetensors(path);
    change(tensors[name]);
    auto bad = std::filesystem::path(testing::TempDir()) / "bad.safetensors";
    write_safetensors(bad, tensors);
    try {
      read_batch(bad, config);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  EXPECT_THAT(says("tokens", [](at::Tensor& t) { t[3] = 9999; }), HasSubstr("tokens: expected 0 to 276, got 9999"));
  EXPECT_THAT(says("tokens", [](at::Tensor& t) { t = t.slice(0, 0, -1); }), HasSubstr("tokens: expected"));
  EXPECT_THAT(says("lengths", [](at::Tensor& t) { t[0] = -1; }), HasSubstr("lengths: expected 1 to"));
  EXPECT_THAT(says("drawn", [](at::Tensor& t) { t[1] = t[0].clone(); }), HasSubstr("ascending places"));
  EXPECT_THAT(says("experts", [](at::Tensor& t) { t[5] = 100; }), HasSubstr("experts: expected 0 to"));
  EXPECT_THAT(says("selected", [](at::Tensor& t) { t[5] = 100000; }), HasSubstr("selected: expected -1 to"));
  EXPECT_THAT(says("kept", [](at::Tensor& t) { t.fill_(0); }), HasSubstr("that was drawn"));
  EXPECT_THAT(says("choices", [](at::Tensor& t) { t[1] = 7; }), HasSubstr("choices of this model"));
  EXPECT_THAT(says("version", [](at::Tensor& t) { t = t.to(at::kFloat); }), HasSubstr("a list version of Long"));
  EXPECT_THAT(says("members", [](at::Tensor& t) { t[0] = '['; }), HasSubstr("member 0"));
}

TEST_F(UpdateTest, DifficultiesRiseWithThePassRateAndFallWithIt) {
  rl.tasks = "count:1-3,reverse:2";
  auto run = std::filesystem::path(testing::TempDir()) / cat("collector-", getpid());
  std::filesystem::create_directories(run);
  Collector collector(rl, run, tokenizer, alone);
  auto behind = [&](double passed, double valid) {
    RolloutSums sums;
    sums.valid_of_kind = {valid, valid}, sums.passed_of_kind = {passed, passed};
    collector.adapt(sums);
    return collector.difficulties();
  };
  EXPECT_EQ(collector.difficulties(), Json({{"count", 1}})) << "reverse has no range";
  EXPECT_EQ(behind(8, 10)["count"], 2);
  EXPECT_EQ(behind(5, 10)["count"], 2);
  EXPECT_EQ(behind(0, 0)["count"], 2) << "nothing was valid";
  EXPECT_EQ(behind(10, 10)["count"], 3);
  EXPECT_EQ(behind(10, 10)["count"], 3) << "the hardest";
  EXPECT_EQ(behind(2, 10)["count"], 2);
  behind(0, 10);
  EXPECT_EQ(behind(0, 10)["count"], 1) << "the easiest";
  std::filesystem::remove_all(run);
}

// The rows of a prompt that a group shares are there once: the same log-probabilities to the bit, the same gradients but for the
// order of sums.
TEST_F(UpdateTest, ASharedPromptIsComputedOnce) {
  auto members = rolled_out();
  auto parts = parts_of(members);
  auto shared = policy_rows(config, parts[1].members, true, RowLayout::shared);
  auto apart = policy_rows(config, parts[1].members, true, RowLayout::apart);
  int64_t prompt = members[rl.group].segments[0].drawn[0];
  EXPECT_EQ(shared.batch.tokens_N.size(0), apart.batch.tokens_N.size(0) - (rl.group - 1) * prompt);
  EXPECT_EQ(shared.copies_N.sum().item<double>(), double(apart.batch.tokens_N.size(0)));
  EXPECT_EQ(policy_log_probs(model, rl, shared, true), policy_log_probs(model, rl, apart, true));

  update(parts);
  auto of_shared = gradients();
  // Members apart: each a part of its own, whose weight is then that of a group.
  std::vector<UpdatePart> alone_parts;
  for (const auto& part : parts)
    for (size_t i = 0; i < part.members.size(); ++i) alone_parts.push_back({{part.members[i]}, {part.advantage[i]}});
  update(alone_parts);
  auto of_apart = gradients();
  auto all = parameters(model.weights());
  for (size_t i = 0; i < all.size(); ++i) {
    if (!of_apart[i].defined()) continue;
    double largest = of_apart[i].abs().max().item<double>();
    EXPECT_LT((of_apart[i] - of_shared[i]).abs().max().item<double>(), 2e-5 * largest + 1e-9) << all[i].name;
  }

  auto other = members[rl.group + 1];
  other.segments[0].record.selected.ids[0] = 1 - other.segments[0].record.selected.ids[0];
  auto unlike = parts[1].members;
  unlike[1] = &other;
  EXPECT_EQ(policy_rows(config, unlike, true, RowLayout::shared).batch.tokens_N.size(0), apart.batch.tokens_N.size(0));
}

TEST_F(UpdateTest, GradientsDoNotDependOnThreads) {
  auto members = rolled_out();
  auto parts = parts_of(members);
  int before = threads();
  set_threads(1);
  update(parts);
  auto expected = gradients();
  set_threads(3);
  update(parts);
  set_threads(before);
  auto got = gradients();
  size_t trained = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].defined(), expected[i].defined());
    if (!got[i].defined()) continue;
    EXPECT_TRUE(at::equal(got[i], expected[i])) << i;
    ++trained;
  }
  EXPECT_GT(trained, 30u);
}

TEST_F(UpdateTest, ADifferenceStopsTheRunAndNamesLayerAndToken) {
  auto members = rolled_out();
  auto parts = parts_of(members);
  auto said = [&] {
    try {
      return cat("nothing; mismatch ", update(parts).match.mismatch);
    } catch (const InputError& error) {
      return std::string(error.what());
    }
  };
  auto& indexer = *model.weights().layers[1].self_attn.indexer;
  indexer.wk.neg_();
  EXPECT_EQ(said(), "nothing; mismatch 0");  // its choices are forced
  rl.keep_selection = false;
  EXPECT_THAT(said(), HasSubstr("expected the sampler's log-probability"));
  EXPECT_THAT(said(), HasSubstr("layer 1 selects other keys"));
  rl.exact = false;
  EXPECT_THAT(said(), testing::AllOf(HasSubstr("nothing"), testing::Not(testing::EndsWith("mismatch 0"))));
  EXPECT_GT(changed_choices(model, rl, parts[0]).selections, 0.1);
}

TEST_F(UpdateTest, FrozenIndexersGetNoGradient) {
  auto members = rolled_out();
  rl.indexer_kl = 0;
  update(parts_of(members));
  for (auto& p : parameters(model.weights()))
    if (p.indexer()) EXPECT_FALSE(p.tensor->grad().defined()) << p.name;
  rl.indexer_kl = 0.5;
  auto sums = update(parts_of(members));
  for (double kl : sums.kl) EXPECT_GT(kl, 0);
  // The policy's own gradient does not reach them, nor theirs the model: twice the strength is twice theirs alone.
  auto half = gradients();
  rl.indexer_kl = 1;
  update(parts_of(members));
  auto whole = gradients();
  auto all = parameters(model.weights());
  for (size_t i = 0; i < all.size(); ++i) {
    if (!half[i].defined()) continue;
    if (all[i].indexer())
      EXPECT_LT((whole[i] - half[i] * 2).abs().max().item<double>(), 1e-6 * whole[i].abs().max().item<double>() + 1e-12)
          << all[i].name;
    else EXPECT_TRUE(at::equal(whole[i], half[i])) << all[i].name;
  }
}

// A model that knows nothing writes half tags, unless a grammar holds it; its log-probabilities are then among what that allows.
TEST_F(UpdateTest, AGrammarLeavesNoAnswerMalformed) {
  auto lookups = [&] {
    std::vector<Member> members;
    const Family& of = family("lookup");
    for (int64_t i = 0; i < 32; ++i)
      members.push_back({.attempt = {&of, of.task(Split::train, 1, uint64_t(i / rl.group)), uint64_t(i)}});
    std::vector<Turn> turns;
    for (auto& member : members) turns.push_back({&member});
    Engine engine(model, engine_options(rl, config, int64_t(members.size())));
    roll_on(engine, tokenizer, rollout_options(rl, &tokenizer), /*version=*/0, turns);
    return members;
  };
  auto malformed = [](const std::vector<Member>& members) {
    return std::count_if(members.begin(), members.end(), [](const Member& m) { return m.end == "malformed"; });
  };
  rl.top_p = 1, rl.max_tokens = 200, rl.context = 2048;
  EXPECT_GT(malformed(lookups()), 2);
  for (std::string mode : {"chat", "thinking"}) {
    rl.grammar = true, rl.mode = mode;
    auto members = lookups();
    EXPECT_EQ(malformed(members), 0) << mode;
    EXPECT_EQ(update(parts_of(members)).match.mismatch, 0) << mode;
  }
  rl.keep_sampling_mask = false;
  EXPECT_THROW(validate(rl), InputError) << "exact, and training counts what the grammar forbade";
}

TEST_F(UpdateTest, ImpossibleSamplingIsRefused) {
  auto options = rollout_options(rl);
  options.sampling.presence_penalty = 0.1;
  EXPECT_THROW(validate(options), InputError);
  rl.sampler_weights = "int8";
  EXPECT_THROW(validate(rl), InputError);  // cannot be exact
  rl.exact = false;
  EXPECT_NO_THROW(validate(rl));
  rl.tasks = "reverse:99";
  EXPECT_THROW(validate(rl), InputError);
  rl.tasks = "chess";
  EXPECT_THROW(validate(rl), InputError);
}

}  // namespace
}  // namespace fulgur
