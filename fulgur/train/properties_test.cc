// What holds for every text, length, context, seed and schedule, on cases that rapidcheck draws and then shrinks.
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/text/train_bpe.h"
#include "fulgur/train/batches.h"
#include "fulgur/train/parallel.h"
#include "fulgur/train/stage.h"

namespace fulgur {
namespace {
namespace fs = std::filesystem;

struct Corpus {
  fs::path folder = fs::temp_directory_path() / cat("fulgur-properties-", getpid());
  std::vector<std::string> texts;
  PackSummary summary;

  // Without `holdout_every`, one more document is held out.
  explicit Corpus(std::vector<std::string> given, int64_t holdout_every = 0, int64_t shard_tokens = 1 << 20)
      : texts(std::move(given)) {
    if (holdout_every == 0) texts.emplace_back("held out"), holdout_every = int64_t(texts.size());
    fs::remove_all(folder);
    fs::create_directories(folder);
    BpeOptions options{.vocab_size = 258, .special_tokens = {"<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"}};
    write_file_atomic(folder / "tokenizer.json",
                      tokenizer_json(vocabulary_of(train_bpe({}, options), options, deepseek_patterns())).dump());
    std::string lines;
    for (const auto& text : texts) lines += Json{{"text", text}}.dump() + "\n";
    write_file_atomic(folder / "text.jsonl", lines);
    summary = pack({.inputs = {folder / "text.jsonl"},
                    .tokenizer = folder / "tokenizer.json",
                    .out = folder / "shards",
                    .holdout_every = holdout_every,
                    .shard_tokens = shard_tokens},
                   [](int64_t, int64_t) {});
  }
  Corpus(const Corpus&) = delete;
  Corpus& operator=(const Corpus&) = delete;
  ~Corpus() { fs::remove_all(folder); }
};

rc::Gen<std::vector<std::string>> texts(int least) {
  auto text = rc::gen::map(rc::gen::container<std::string>(rc::gen::inRange<char>(' ', '~')),
                           [](const std::string& s) { return "x" + s; });  // one of white space alone is no document
  return rc::gen::suchThat(rc::gen::container<std::vector<std::string>>(text),
                           [=](const auto& all) { return int(all.size()) >= least; });
}

std::vector<int32_t> document(const TokenShards& shards, int64_t d) {
  std::vector<int32_t> tokens(shards.length(d));
  shards.read(d, 0, shards.length(d), tokens.data());
  return tokens;
}

RC_GTEST_PROP(DataProperties, ShardsHoldEveryDocumentOnceInOrderWholeAndFramed, ()) {
  auto every = *rc::gen::inRange<int64_t>(2, 6);
  auto shard_tokens = *rc::gen::inRange<int64_t>(1, 200);
  Corpus corpus(*texts(int(every)), every, shard_tokens);
  Tokenizer tokenizer(corpus.folder / "tokenizer.json");
  TokenShards train(corpus.folder / "shards", "train"), valid(corpus.folder / "shards", "valid");
  RC_ASSERT((train.documents() == corpus.summary.train.documents && train.tokens() == corpus.summary.train.tokens));
  RC_ASSERT((valid.documents() == corpus.summary.valid.documents && valid.tokens() == corpus.summary.valid.tokens));
  int64_t next_train = 0, next_valid = 0, bytes = 0;
  for (const auto& text : corpus.texts) {
    // A document is in one of the two, and nowhere else: the counts below end at the numbers of documents.
    auto framed = [&](const TokenShards& shards, int64_t at) {
      if (at >= shards.documents()) return false;
      auto tokens = document(shards, at);
      return tokens.front() == 0 && tokens.back() == 1 && tokenizer.decode({tokens.begin() + 1, tokens.end() - 1}) == text;
    };
    if (framed(train, next_train)) ++next_train;
    else RC_ASSERT(framed(valid, next_valid++));
    bytes += int64_t(text.size());
  }
  RC_ASSERT((next_train == train.documents() && next_valid == valid.documents()));
  RC_ASSERT(train.text_bytes() + valid.text_bytes() == bytes);
}

RC_GTEST_PROP(DataProperties, AnEpochHasWholeSequencesOfPiecesOfDocumentsAndLosesLessThanOne, ()) {
  Corpus corpus(*texts(1));
  TokenShards shards(corpus.folder / "shards", "train");
  auto context = *rc::gen::inRange<int64_t>(2, 24);
  RC_PRE(shards.tokens() - shards.documents() >= context);
  Batches batches(shards, context, *rc::gen::arbitrary<uint64_t>());
  auto epoch = *rc::gen::inRange<int64_t>(0, 3);
  auto b = batches.get(epoch * batches.sequences_per_epoch(), batches.sequences_per_epoch());
  const int* token = b.batch.tokens_N.const_data_ptr<int>();
  const int* position = b.batch.positions_N.const_data_ptr<int>();
  const int* visible = b.batch.visible_N2.const_data_ptr<int>();
  const int* starts = b.starts.const_data_ptr<int>();
  int64_t N = b.batch.tokens_N.size(0);
  for (int64_t s = 0; s < batches.sequences_per_epoch(); ++s)
    RC_ASSERT((starts[s + 1] - starts[s] == context && position[starts[s]] == 0));
  std::vector<std::vector<int32_t>> documents;
  int64_t largest = 0;
  for (int64_t d = 0; d < shards.documents(); ++d) {
    documents.push_back(document(shards, d));
    if (shards.length(d) > 1) largest += shards.length(d);
  }
  std::map<std::vector<int32_t>, int64_t> pieces;
  for (int64_t i = 0; i < N; ++i) {
    RC_ASSERT((visible[2 * i] == i - position[i] && visible[2 * i + 1] == i + 1));
    bool ends = i + 1 == N || position[i + 1] == 0;
    RC_ASSERT((ends || position[i + 1] == position[i] + 1));
    if (ends) ++pieces[{token + i - position[i], token + i + 1}];
  }
  for (const auto& [piece, times] : pieces) {
    int64_t places = 0;
    for (const auto& tokens : documents)
      for (auto at = tokens.begin(); (at = std::search(at, tokens.end(), piece.begin(), piece.end())) != tokens.end(); ++at)
        ++places;
    RC_ASSERT(times <= places);
  }
  // Left out: less than a sequence, and a last token alone of documents one longer than a multiple of the context.
  RC_ASSERT((N <= largest && N > largest - context - shards.documents()));
}

RC_GTEST_PROP(DataProperties, SequencesAreTheSameHoweverTheyAreAskedFor, ()) {
  Corpus corpus(*texts(1));
  TokenShards shards(corpus.folder / "shards", "train");
  auto context = *rc::gen::inRange<int64_t>(2, 16);
  RC_PRE(shards.tokens() - shards.documents() >= context);
  auto seed = *rc::gen::arbitrary<uint64_t>();
  auto first = *rc::gen::inRange<int64_t>(0, 50), count = *rc::gen::inRange<int64_t>(1, 9);
  Batches batches(shards, context, seed), resumed(shards, context, seed);
  auto whole = batches.get(first, count);
  auto asked = *rc::gen::inRange<int64_t>(0, count);
  resumed.get(*rc::gen::inRange<int64_t>(0, 50), 1);
  auto part = resumed.get(first + asked, count - asked);
  auto rest = [&](const at::Tensor& x) { return x.narrow(0, asked * context, (count - asked) * context); };
  RC_ASSERT(at::equal(part.batch.tokens_N, rest(whole.batch.tokens_N)));
  RC_ASSERT(at::equal(part.batch.positions_N, rest(whole.batch.positions_N)));
  RC_ASSERT((at::equal(part.next_N, rest(whole.next_N)) && at::equal(part.next2_N, rest(whole.next2_N))));
}

RC_GTEST_PROP(RandomProperties, AStreamGoesOnFromItsCounterAndOthersDoNotDisturbIt, ()) {
  auto seed = *rc::gen::arbitrary<uint64_t>();
  auto skipped = *rc::gen::inRange(0, 40);
  auto n = *rc::gen::inRange<uint64_t>(1, 1000);
  RandomStream stream(seed, "data"), other(seed, "dropout");
  for (int i = 0; i < skipped; ++i) stream.normal(), other.bits();
  RandomStream resumed(seed, "data");
  resumed.set_counter(stream.counter());
  for (int i = 0; i < 20; ++i) {
    auto drawn = stream.below(n);
    RC_ASSERT((drawn < n && drawn == resumed.below(n)));
    double share = stream.uniform();
    RC_ASSERT((share >= 0 && share < 1 && share == resumed.uniform()));
  }
}

RC_GTEST_PROP(ScheduleProperties, RisesToItsPeakAndNeverRisesAgain, ()) {
  StageConfig c;
  c.context = 4, c.micro_tokens = 4, c.batch_tokens = 4;
  int64_t steps = *rc::gen::inRange<int64_t>(2, 200);
  c.tokens = 4 * steps - *rc::gen::inRange<int64_t>(0, 4);
  c.schedule = *rc::gen::element<std::string>("constant", "cosine", "wsd", "linear");
  c.warmup_steps = *rc::gen::inRange<int64_t>(0, steps - 1);
  c.final_lr = *rc::gen::inRange(0, 101) / 100.0, c.decay_share = *rc::gen::inRange(0, 101) / 100.0;
  validate(c);
  RC_ASSERT(stage_steps(c) == steps);
  std::vector<double> share;
  for (int64_t step = 0; step < steps; ++step) share.push_back(schedule_share(c, step));
  for (int64_t step = 0; step < steps; ++step) {
    RC_ASSERT((share[step] >= 0 && share[step] <= 1));
    if (step < c.warmup_steps) RC_ASSERT((share[step] > 0 && (step == 0 || share[step] > share[step - 1])));
    else if (step > c.warmup_steps) RC_ASSERT(share[step] <= share[step - 1]);
    if (c.schedule == "wsd" && step >= c.warmup_steps && double(step) <= double(steps) * (1 - c.decay_share))
      RC_ASSERT(share[step] == 1);
  }
  if (c.warmup_steps > 0) RC_ASSERT(share[c.warmup_steps - 1] == 1);
  bool decays = c.schedule != "constant" && (c.schedule != "wsd" || c.decay_share * double(steps) > 1 + 1e-9);
  if (decays) RC_ASSERT(std::abs(share.back() - c.final_lr) < 1e-12);
}

// Why two processes make the bits of one: parts added up in aligned runs first, by whoever, end in the same sum.
RC_GTEST_PROP(TreeSumProperties, AlignedRunsAddedUpElsewhereGiveTheSameBits, ()) {
  auto parts = *rc::gen::inRange<int64_t>(1, 40), run = int64_t(1) << *rc::gen::inRange(0, 5);
  at::manual_seed(*rc::gen::inRange<uint64_t>(0, 1000));
  TreeSum whole, outer;
  for (int64_t first = 0; first < parts; first += run) {
    TreeSum inner;
    for (int64_t i = first; i < std::min(parts, first + run); ++i) {
      auto part = at::randn({5});
      whole.add({part.clone()}), inner.add({part});
    }
    outer.add(inner.take());
  }
  RC_ASSERT(at::equal(whole.take()[0], outer.take()[0]));
}

}  // namespace
}  // namespace fulgur
