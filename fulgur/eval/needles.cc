#include "fulgur/eval/needles.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/argmax.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/model/probe.h"
#include "fulgur/ops/linear/linear.h"
#include "fulgur/ops/pages.h"

namespace fulgur {
namespace {

using Tokens = std::vector<int32_t>;

constexpr std::array kNames{"Anna",  "Bruno", "Clara", "David", "Elena", "Felix",   "Grace", "Hugo",
                            "Irene", "Jonas", "Karin", "Lukas", "Maria", "Nikolas", "Olga",  "Peter"};
constexpr const char* kIntroduction = "Pass keys are hidden in this text. Find them and remember them.";
constexpr const char* kFiller[] = {" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.",
                                   " There and back again."};

std::string whose(const std::string& name) { return name.empty() ? "" : " of " + name; }
std::string telling(const std::string& name, const std::string& key) {
  return cat(" The pass key", whose(name), " is ", key, ". Remember it.");
}
std::string asking(const std::string& name) {
  return cat("\nWhat is the pass key", whose(name), "? The pass key", whose(name), " is");
}

// A text without keys, and where its sentences end.
struct Haystack {
  Tokens tokens;
  std::vector<int64_t> ends;
};

Haystack haystack(const ModelConfig& config, const Tokenizer& tokenizer, int64_t length) {
  Haystack out;
  if (config.bos_token_id >= 0) out.tokens.push_back(int32_t(config.bos_token_id));
  auto add = [&](const std::string& text) {
    for (auto id : tokenizer.encode(text)) out.tokens.push_back(id);
  };
  add(kIntroduction);
  for (size_t i = 0;; ++i) {
    auto sentence = tokenizer.encode(kFiller[i % std::size(kFiller)]);
    if (int64_t(out.tokens.size() + sentence.size()) > length) break;
    out.ends.push_back(int64_t(out.tokens.size()));
    out.tokens.insert(out.tokens.end(), sentence.begin(), sentence.end());
  }
  return out;
}

// What is put into the haystack where, and asked behind it.
struct Sample {
  std::vector<std::pair<int64_t, Tokens>> told;      // by place, ascending
  std::vector<std::pair<Tokens, Tokens>> questions;  // and answers
};

Sample draw(const NeedleTest& test, const Tokenizer& tokenizer, const Haystack& hay, int64_t number) {
  RandomStream random(test.seed, cat("needles.", test.keys, ".", number));
  std::vector<int> names(kNames.size());
  for (size_t i = 0; i < names.size(); ++i) names[i] = int(i);
  shuffle(names, random);
  Sample out;
  for (int64_t i = 0; i < test.keys; ++i) {
    std::string key, name = test.keys == 1 ? "" : kNames[names[i]];
    for (int digit = 0; digit < 5; ++digit) key += char('0' + random.below(10));
    // One key alone is told at depths spread evenly over the samples.
    double depth = test.keys == 1 ? (double(number) + 0.5) / double(test.samples) : random.uniform();
    auto place = hay.ends[size_t(depth * double(hay.ends.size()))];
    out.told.emplace_back(place, tokenizer.encode(telling(name, key)));
    out.questions.emplace_back(tokenizer.encode(asking(name)), tokenizer.encode(" " + key));
  }
  std::stable_sort(out.told.begin(), out.told.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  return out;
}

// The sample's text behind the haystack's first `from` tokens.
Tokens text_behind(const Haystack& hay, const Sample& sample, int64_t from) {
  Tokens out;
  int64_t at = from;
  for (const auto& [place, told] : sample.told) {
    out.insert(out.end(), hay.tokens.begin() + at, hay.tokens.begin() + place);
    out.insert(out.end(), told.begin(), told.end());
    at = place;
  }
  out.insert(out.end(), hay.tokens.begin() + at, hay.tokens.end());
  return out;
}

class Reader {
 public:
  Reader(const Transformer& model, EvalForm form, int64_t pages)
      : model_(model),
        form_(form),
        cache_(model.config(), attention(), at::kFloat, pages) {}

  at::Tensor read(CachedSequence& sequence, const Tokens& tokens) {
    auto batch = append({&sequence}, {tokens});
    Replay window;
    ForwardOptions options{.attention = attention()};
    if (form_ == EvalForm::window) {
      window.selected_NK.assign(model_.config().num_hidden_layers, window_selection(batch, model_.config().index_topk, 4));
      options.replay = &window;
    }
    return model_.forward(batch, options, &cache_);
  }

 private:
  Attention attention() const { return form_ == EvalForm::dense ? Attention::dense : Attention::sparse; }
  const Transformer& model_;
  EvalForm form_;
  Cache cache_;
};

// Whether the model would answer so behind `text`.
bool answers(Reader& reader, const Transformer& model, CachedSequence text, const Tokens& question, const Tokens& answer) {
  auto asked = question;
  asked.insert(asked.end(), answer.begin(), answer.end());
  int64_t count = int64_t(answer.size());
  auto hidden = reader.read(text, asked).narrow(0, int64_t(question.size()) - 1, count);
  auto best = ops::linear(hidden, model.weights().lm_head).argmax(1);
  for (int64_t j = 0; j < count; ++j)
    if (best[j].item<int64_t>() != answer[j]) return false;
  return true;
}

}  // namespace

NeedleCount count_needles(const Transformer& model, const Tokenizer& tokenizer, const NeedleTest& test,
                          const std::function<bool(int64_t)>& told) {
  c10::AutoGradMode no_grad(false);
  FULGUR_CHECK(test.keys >= 1 && test.keys <= int64_t(kNames.size()), "[eval] needles: expected 1 to ", kNames.size(),
               " keys, got ", test.keys);
  // Tokens of the longest name's, and some more: digits may pair otherwise.
  auto tokens = [&](const std::string& text) { return int64_t(tokenizer.encode(text).size()) + 4; };
  int64_t needed = test.keys * tokens(telling("Nikolas", "13579")) + tokens(asking("Nikolas")) + tokens(" 13579");
  auto hay = haystack(model.config(), tokenizer, test.context - needed);
  FULGUR_CHECK(int64_t(hay.ends.size()) > test.keys, "[eval] needles: expected a context of far more than ", needed,
               " tokens for ", test.keys, " keys, got ", test.context);
  // Pages of the haystack alone, and as many for what is behind a text's first key.
  int64_t pages = pages_for(test.context);
  Reader reader(model, test.form, 2 * pages);
  auto whole = cached_sequences(1, pages * kPageKeys)[0];
  reader.read(whole, hay.tokens);
  NeedleCount count;
  for (int64_t i = 0; count.asked < test.samples; ++i) {
    auto sample = draw(test, tokenizer, hay, i);
    int64_t shared = sample.told[0].first / kPageKeys;
    CachedSequence text{{whole.pages.begin(), whole.pages.begin() + shared}, shared * kPageKeys};
    for (int64_t p = shared; p < pages; ++p) text.pages.push_back(int32_t(pages + p));
    reader.read(text, text_behind(hay, sample, text.length));
    for (const auto& [question, answer] : sample.questions) {
      if (count.asked == test.samples) break;
      count.right += answers(reader, model, text, question, answer), ++count.asked;
    }
    if (!told(count.asked)) break;
  }
  return count;
}

}  // namespace fulgur
