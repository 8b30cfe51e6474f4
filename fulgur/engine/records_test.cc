// What an engine says it chose is what the plain forward pass over the finished text chooses, and training can repeat it.
#include "fulgur/engine/testing.h"

namespace fulgur {
namespace {

class RecordsTest : public EngineFixture {
 protected:
  RecordsTest() {
    config.num_nextn_predict_layers = 1;
    validate(config, "with MTP");
    model = Transformer(config, init_weights(config, 7));
    // Nothing but choices differs: the indexers and the routers' biases.
    auto weights = init_weights(config, 7), others = init_weights(config, 8);
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      weights.layers[i].self_attn.indexer = others.layers[i].self_attn.indexer;
      if (auto& moe = weights.layers[i].moe) moe->e_score_correction_bias = at::arange(config.n_routed_experts).to(at::kFloat);
    }
    of_another_mind = Transformer(config, std::move(weights));
  }

  static ForwardOptions plain(const EngineOptions& o) {
    return {.attention = o.dense ? Attention::dense : Attention::sparse, .type = o.bf16 ? at::kBFloat16 : at::kFloat};
  }
  // One entry a layer of the model, as Replay wants them.
  Replay replay_of(const Record& record) const {
    Replay replay;
    int64_t dense = config.first_k_dense_replace;
    for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
      replay.experts_Nk.push_back(i < dense ? at::Tensor() : of_layer(record.experts, i - dense));
      replay.selected_NK.push_back(record.selected.layers ? of_layer(record.selected, i) : at::Tensor());
    }
    return replay;
  }

  void expect_what_the_forward_pass_chooses(const std::vector<int32_t>& prompt, const Completion& done, const EngineOptions& o) {
    auto tokens = prompt;
    for (const auto& token : done.tokens) tokens.push_back(token.id);
    const Record& record = done.record;
    int64_t N = int64_t(tokens.size()) - 1;
    bool whole = done.finish == Finish::length;
    ASSERT_TRUE(!whole || record.experts.positions == N);
    N = record.experts.positions;
    if (N == 0) return;
    Trace trace;
    auto options = plain(o);
    options.trace = &trace;
    auto batch = pack_documents(at::tensor(tokens, at::kInt).narrow(0, 0, N), {N});
    model.forward(batch, options);
    expect_chosen(record, trace, config, !o.dense);
    if (whole) expect_replayed(batch, prompt, done, replay_of(record), plain(o));
  }

  // Log-probabilities of the generated tokens under the model of another mind, made to repeat the choices: the engine's.
  void expect_replayed(const Batch& batch, const std::vector<int32_t>& prompt, const Completion& done, const Replay& replay,
                       ForwardOptions options) {
    std::vector<int32_t> ids;
    std::vector<float> expected;
    for (const auto& token : done.tokens) ids.push_back(token.id), expected.push_back(token.log_prob);
    int64_t first = int64_t(prompt.size()) - 1, count = int64_t(ids.size());
    auto log_prob = [&] {
      auto hidden_ND = of_another_mind.forward(batch, options);
      return ops::log_prob(hidden_ND.narrow(0, first, count), model.weights().lm_head, at::tensor(ids, at::kInt));
    };
    differ += !at::equal(log_prob(), at::tensor(expected));
    options.replay = &replay;
    EXPECT_TRUE(at::equal(log_prob(), at::tensor(expected)));
    ++replayed;
  }

  ModelConfig config = small_config();
  Transformer of_another_mind = model;
  int64_t replayed = 0, differ = 0;  // texts, and those that the other model sees otherwise when left to itself
};

TEST_F(RecordsTest, AreWhatTheForwardPassChoosesWhateverHappens) {
  for (EngineOptions options : {EngineOptions{.record = true}, EngineOptions{.bf16 = true, .draft = true, .record = true},
                                EngineOptions{.dense = true, .draft = true, .record = true}}) {
    auto texts = crowd_equals_its_forward_passes(options);
    auto requests = many_requests();
    for (size_t i = 0; i < texts.size(); ++i) expect_what_the_forward_pass_chooses(requests[i].prompt, texts[i], options);
  }
  EXPECT_GT(replayed, 100);
  EXPECT_EQ(differ, replayed);
}

TEST_F(RecordsTest, ComeOnlyWhereAskedFor) {
  Engine engine(model, {});
  auto done = complete(engine, {.prompt = {1, 2}, .max_tokens = 2}, [](const Event& event) { EXPECT_FALSE(event.record); });
  EXPECT_TRUE(done.record.experts.ids.empty());
}

}  // namespace
}  // namespace fulgur
