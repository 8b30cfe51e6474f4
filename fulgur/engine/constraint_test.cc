// Answers of a model that knows nothing, under constraints: each is a text of its language, in any batch and with drafts.
#include "fulgur/text/constraint.h"

#include "fulgur/base/python_json.h"
#include "fulgur/engine/testing.h"
#include "fulgur/text/bytes.h"
#include "fulgur/text/schema.h"

namespace fulgur {
namespace {

constexpr int32_t kEnd = 264;

// A token for every byte, some of several, and an end.
const Tokenizer& tokenizer() {
  static const Tokenizer made = [] {
    std::vector<std::string> texts;
    for (const auto& character : byte_characters()) texts.push_back(character);
    for (auto text : {"{\"", "\":", "\"}", "[1", "]}", "abc", "ef", "true"}) texts.push_back(text);
    std::vector<int32_t> type(texts.size(), 1);
    texts.push_back("<end>"), type.push_back(3);
    return Tokenizer(gguf_vocabulary(texts, type, {}, "gpt-2", "test"));
  }();
  return made;
}

std::shared_ptr<const Constraint> constraint(Grammar grammar) {
  static const auto tree = std::make_shared<const TokenTree>(tokenizer());
  return std::make_shared<const Constraint>(std::move(grammar), tree);
}

class ConstraintTest : public testing::Test {
 protected:
  ConstraintTest() {
    config.vocab_size = 272;
    model = Transformer(config, foreseeing(config, 1, 0.5, /*confidence=*/2));
  }

  static std::string text_of(const Completion& done) {
    std::vector<int32_t> ids;
    for (const auto& token : done.tokens)
      if (token.id != kEnd) ids.push_back(token.id);
    return tokenizer().decode(ids);
  }

  ModelConfig config = with_mtp(small_config());
  Transformer model{config, init_weights(config, 1)};
};

TEST_F(ConstraintTest, EveryAnswerIsOfTheLanguageInAnyBatchAndWithDrafts) {
  auto schema = schema_grammar(parse_python_json(
      R"({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}, "n": {"type": "integer"},
          "list": {"type": "array", "items": {"enum": [1, true, "x"]}, "maxItems": 3}}, "required": ["a", "list"]})",
      "schema"));
  auto to_json = constraint(std::move(schema));
  std::vector<Request> requests;
  for (uint64_t i = 0; i < 30; ++i) {
    Request request{.prompt = {int32_t(i), 5, 9}, .max_tokens = 300, .stop_tokens = {kEnd}, .constraint = to_json};
    request.sampling = {.temperature = i % 5 ? 1.0 : 0.0, .top_k = i % 3 ? 0 : 20, .top_p = i % 2 ? 1 : .9, .seed = i};
    requests.push_back(request);
  }
  std::vector<Completion> alone;
  Engine plain(model, {});
  for (const auto& request : requests) alone.push_back(complete(plain, request));
  EngineOptions drafting;
  drafting.draft = true;
  Engine drafts(model, drafting);
  Crowd crowd(drafts);
  for (const auto& request : requests) crowd.submit(request);
  crowd.wait();
  EXPECT_GT(drafts.statistics().accepted, 0);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(alone[i].finish, Finish::stop);
    Json made = parse_python_json(text_of(alone[i]), "made");
    EXPECT_TRUE(made["a"].is_string() && made["list"].is_array()) << made;
    expect_same(crowd.all()[i]->done, alone[i]);
    for (const auto& token : alone[i].tokens)
      if (!token.kept.empty()) {
        EXPECT_TRUE(std::binary_search(token.kept.begin(), token.kept.end(), token.id));
      }
  }
}

TEST_F(ConstraintTest, WithoutAStopTokenItEndsWhereNothingCanFollow) {
  Engine engine(model, {});
  Request request{.prompt = {1, 2}, .max_tokens = 50, .constraint = constraint(regex_grammar("^(abc){2}ef$"))};
  auto done = complete(engine, request);
  EXPECT_EQ(text_of(done), "abcabcef");
  EXPECT_EQ(done.finish, Finish::stop);
  request.max_tokens = 1;
  EXPECT_EQ(complete(engine, request).finish, Finish::length);
}

TEST_F(ConstraintTest, AnAnswerThatHasBegunGoesOnAsItWould) {
  Engine engine(model, {});
  Request whole{.prompt = {1, 2}, .max_tokens = 60, .stop_tokens = {kEnd}, .constraint = constraint(json_grammar())};
  whole.sampling.seed = 4;
  auto all = complete(engine, whole);
  ASSERT_GT(all.tokens.size(), 5u);
  Request rest = whole;
  for (rest.answered = 0; rest.answered < 5; ++rest.answered) rest.prompt.push_back(all.tokens[rest.answered].id);
  rest.max_tokens -= 5;
  auto behind = complete(engine, rest);
  ASSERT_EQ(behind.tokens.size() + 5, all.tokens.size());
  for (size_t i = 0; i < behind.tokens.size(); ++i) {
    EXPECT_EQ(behind.tokens[i].id, all.tokens[i + 5].id);
    EXPECT_EQ(behind.tokens[i].kept, all.tokens[i + 5].kept);
  }
  rest.prompt.back() = kEnd;
  EXPECT_THROW(engine.submit(rest, [](const Event&) {}), InputError) << "what has begun is none of its texts";
  rest.answered = 100;
  EXPECT_THROW(engine.submit(rest, [](const Event&) {}), InputError) << "longer than the prompt";
}

TEST_F(ConstraintTest, RefusesWhatCannotBeServed) {
  Engine engine(model, {});
  auto submit = [&](Request request) { engine.submit(std::move(request), [](const Event&) {}); };
  EXPECT_THROW(submit({.prompt = {1}, .constraint = constraint(regex_grammar("^$"))}), InputError);
  ModelConfig small = small_config();
  Engine narrow(Transformer(small, init_weights(small, 1)), {});
  EXPECT_THROW(narrow.submit({.prompt = {1}, .constraint = constraint(json_grammar())}, [](const Event&) {}), InputError)
      << "a vocabulary larger than the model's";
}

}  // namespace
}  // namespace fulgur
