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
  std::vector<std::pair<int64_t, Tokens>> told;  // by place, ascending
  Tokens question, answer;
};

Sample draw(const NeedleTest& test, const Tokenizer& tokenizer, const Haystack& hay, int64_t number) {
  RandomStream random(test.seed, cat("needles.", test.keys, ".", number));
  std::vector<int> names(kNames.size());
  for (size_t i = 0; i < names.size(); ++i) names[i] = int(i);
  shuffle(names, random);
  Sample out;
  int64_t asked = int64_t(random.below(uint64_t(test.keys)));
  for (int64_t i = 0; i < test.keys; ++i) {
    std::string key, whose = test.keys == 1 ? "" : cat(" of ", kNames[names[i]]);
    for (int digit = 0; digit < 5; ++digit) key += char('0' + random.below(10));
    // One key alone is told at depths spread evenly over the samples.
    double depth = test.keys == 1 ? (double(number) + 0.5) / double(test.samples) : random.uniform();
    auto place = hay.ends[size_t(depth * double(hay.ends.size()))];
    out.told.emplace_back(place, tokenizer.encode(cat(" The pass key", whose, " is ", key, ". Remember it.")));
    if (i != asked) continue;
    out.question = tokenizer.encode(cat("\nWhat is the pass key", whose, "? The pass key", whose, " is"));
    out.answer = tokenizer.encode(" " + key);
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
  for (const auto* part : {&sample.question, &sample.answer}) out.insert(out.end(), part->begin(), part->end());
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

}  // namespace

int64_t right_needles(const Transformer& model, const Tokenizer& tokenizer, const NeedleTest& test,
                      const std::function<bool(int64_t)>& told) {
  c10::AutoGradMode no_grad(false);
  FULGUR_CHECK(test.keys >= 1 && test.keys <= int64_t(kNames.size()), "[eval] needles: expected 1 to ", kNames.size(),
               " keys, got ", test.keys);
  constexpr int64_t kKey = 24, kQuestion = 48;  // tokens at most
  auto hay = haystack(model.config(), tokenizer, test.context - kKey * test.keys - kQuestion);
  FULGUR_CHECK(int64_t(hay.ends.size()) > test.keys, "[eval] needles: expected a context of more than ",
               kKey * test.keys + kQuestion, " tokens for ", test.keys, " keys, got ", test.context);
  // Pages of the haystack alone, and as many for what is behind a sample's first key.
  int64_t pages = pages_for(test.context);
  Reader reader(model, test.form, 2 * pages);
  auto whole = cached_sequences(1, pages * kPageKeys)[0];
  reader.read(whole, hay.tokens);
  int64_t right = 0;
  for (int64_t i = 0; i < test.samples; ++i) {
    auto sample = draw(test, tokenizer, hay, i);
    int64_t shared = sample.told[0].first / kPageKeys;
    CachedSequence sequence{{whole.pages.begin(), whole.pages.begin() + shared}, shared * kPageKeys};
    for (int64_t p = shared; p < pages; ++p) sequence.pages.push_back(int32_t(pages + p));
    auto text = text_behind(hay, sample, sequence.length);
    auto hidden = reader.read(sequence, text);
    int64_t count = int64_t(sample.answer.size()), first = int64_t(text.size()) - count;
    auto logits = ops::linear(hidden.narrow(0, first - 1, count), model.weights().lm_head);
    auto best = logits.argmax(1);
    bool all = true;
    for (int64_t j = 0; j < count; ++j) all = all && best[j].item<int64_t>() == sample.answer[j];
    right += all;
    if (!told(i + 1)) break;
  }
  return right;
}

}  // namespace fulgur
