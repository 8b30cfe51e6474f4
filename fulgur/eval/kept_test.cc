// What chosen keys keep of a dense model: order among the choices, and the ends where it is known exactly.
#include "fulgur/eval/kept.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/interval.h"
#include "fulgur/eval/adapt_report.h"

namespace fulgur {
namespace {

Transformer llama(int64_t k) {
  ModelConfig c;
  c.model_type = "llama", c.tie_word_embeddings = true;
  c.vocab_size = 50, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = c.first_k_dense_replace = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 8;
  c.max_position_embeddings = 256, c.initializer_range = 0.4;
  c.index_keys = "tied", c.index_topk = k, c.index_n_heads = 4, c.index_head_dim = 8;
  validate(c, "llama");
  return {c, init_weights(c, 5)};
}

HeldOut document(int64_t tokens) {
  auto all = (at::arange(tokens + 1) * 7 % 47 + at::arange(tokens + 1) % 3).to(at::kInt);
  return {"numbers", pack_documents(all.narrow(0, 0, tokens), {tokens}), all.narrow(0, 1, tokens).contiguous()};
}

TEST(Kept, NoChoiceHoldsMoreThanTheBestAndAllKeysAreTheDenseModel) {
  auto model = llama(12);
  auto kept = measure_kept(model, model, document(100), {12, 50}, true);
  for (const auto& of : kept["keys"]) {
    const auto& mass = of["mass"];
    EXPECT_EQ(mass["fresh"], mass["taught"]);
    for (const char* form : {"taught", "window"}) EXPECT_LT(mass[form].get<double>(), mass["best"].get<double>()) << form;
  }
  EXPECT_LT(kept["keys"][0]["mass"]["best"], kept["keys"][1]["mass"]["best"]);
  auto attended = measure_attention(model, document(100), 12);
  EXPECT_NEAR(attended.mass, kept["keys"][0]["mass"]["taught"].get<double>(), 1e-6);
  EXPECT_EQ(attended.nll, kept["dense"].get<double>());
  for (auto form : {KeptForm::taught, KeptForm::best, KeptForm::window})
    EXPECT_NEAR(document_nll(model, document(100), form, 100), attended.nll, 1e-5);
  EXPECT_GT(std::abs(document_nll(model, document(100), KeptForm::window, 8) - attended.nll), 1e-3);
  EXPECT_THROW(measure_kept(model, model, document(40), {40}, true), InputError);
}

TEST(Kept, TheReportHasEveryFigureWithItsInterval) {
  auto model = llama(12);
  Json documents = Json::array();
  for (int64_t tokens : {60, 61, 62}) documents.push_back(measure_kept(model, model, document(tokens), {6, 12}, tokens < 62));
  documents[2]["kind"] = "more numbers";
  Json record = {{"options", {{"model", "a/b.gguf"}, {"sequences", 4}, {"context", 60}}},
                 {"packed", Json::array({{{"kind", "numbers"}}})},
                 {"kept", {{"60", documents}}}};
  record["trained"] = Json::array();
  for (int i = 0; i < 3; ++i)
    record["trained"].push_back(
        {{"kind", "numbers"}, {"twin", 3.0}, {"keys", Json::array({{{"k", 6}, {"nll", 3.1}}, {{"k", 12}, {"nll", 3.0}}})}});
  auto text = adapt_tables(record);
  for (const char* part :
       {"all: 3 documents", "numbers: 2 documents", "more numbers: 1 documents", "beyond a dense twin's +10.52 +- 0.00 %"})
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  EXPECT_NE(model_card(model.config(), record).find("A sparse-attention form of b.gguf"), std::string::npos);
  auto s = spread({1, 2, 3, 4});
  EXPECT_DOUBLE_EQ(s.mean, 2.5);
  EXPECT_NEAR(s.half, 1.959964 * std::sqrt(5.0 / 3 / 4), 1e-12);
}

}  // namespace
}  // namespace fulgur
