// Needles: the count is of questions, the same texts whatever the form, and a model that knows nothing finds none.
#include "fulgur/eval/needles.h"

#include <gtest/gtest.h>

#include "fulgur/base/error.h"
#include "fulgur/text/train_bpe.h"

namespace fulgur {
namespace {

Transformer llama() {
  ModelConfig c;
  c.model_type = "llama", c.tie_word_embeddings = true;
  c.vocab_size = 300, c.hidden_size = 32, c.intermediate_size = 48, c.num_hidden_layers = c.first_k_dense_replace = 2;
  c.num_attention_heads = 4, c.num_key_value_heads = 2, c.qk_rope_head_dim = c.v_head_dim = 8;
  c.max_position_embeddings = 2048, c.index_keys = "tied", c.index_topk = 64, c.index_n_heads = 4, c.index_head_dim = 8;
  c.bos_token_id = -1;
  validate(c, "llama");
  return {c, init_weights(c, 5)};
}

Tokenizer bytes() {
  BpeOptions options{.vocab_size = 257, .special_tokens = {"<eos>"}};
  return Tokenizer(vocabulary_of(train_bpe({}, options), options, deepseek_patterns()));
}

TEST(Needles, CountsQuestionsAndStopsWhereTold) {
  auto model = llama();
  auto tokenizer = bytes();
  for (auto form : {EvalForm::dense, EvalForm::sparse, EvalForm::window}) {
    int64_t calls = 0;
    auto count = count_needles(model, tokenizer, {.form = form, .context = 700, .keys = 3, .samples = 7}, [&](int64_t asked) {
      EXPECT_EQ(asked, std::min<int64_t>(7, 3 * ++calls));
      return true;
    });
    EXPECT_EQ(count.asked, 7);
    EXPECT_EQ(count.right, 0);
  }
  auto stopped = count_needles(model, tokenizer, {.context = 400, .samples = 9}, [](int64_t asked) { return asked < 2; });
  EXPECT_EQ(stopped.asked, 2);
}

TEST(Needles, AContextTooShortForItsKeysIsRefused) {
  auto told = [](int64_t) { return true; };
  EXPECT_THROW(count_needles(llama(), bytes(), {.context = 100, .keys = 1}, told), InputError);
  EXPECT_THROW(count_needles(llama(), bytes(), {.context = 2048, .keys = 17}, told), InputError);
}

}  // namespace
}  // namespace fulgur
