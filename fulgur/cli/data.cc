// Text to token shards: data pack.
#include <cstdio>
#include <memory>

#include "fulgur/base/progress.h"
#include "fulgur/cli/cli.h"
#include "fulgur/train/data/shards.h"

namespace fulgur::cli {
namespace {

struct PackFlags {
  std::vector<std::string> inputs;
  std::string tokenizer, out;
  int64_t holdout_every = 0;
  uint64_t seed = 1;
};

void pack_command(const PackFlags& flags, bool json) {
  std::unique_ptr<Progress> progress;
  PackOptions options{.tokenizer = flags.tokenizer, .out = flags.out, .holdout_every = flags.holdout_every, .seed = flags.seed};
  options.inputs.assign(flags.inputs.begin(), flags.inputs.end());
  auto summary = pack(options, [&](int64_t done, int64_t total) {
    if (!progress) progress = std::make_unique<Progress>("pack", "B", total);
    progress->update(done);
  });
  progress.reset();
  Json out = Json::object();
  for (auto [name, split] : {std::pair("train", summary.train), std::pair("valid", summary.valid)}) {
    out[name] = {{"documents", split.documents}, {"tokens", split.tokens}, {"bytes", split.bytes}};
    if (!json)
      std::printf("%s: %lld documents, %s tokens, %sB\n", name, static_cast<long long>(split.documents),
                  human_count(double(split.tokens)).c_str(), human_count(double(split.bytes)).c_str());
  }
  if (json) std::printf("%s\n", out.dump().c_str());
}

}  // namespace

void add_data(CLI::App& app, Common& common) {
  auto flags = std::make_shared<PackFlags>();
  auto* command = app.add_subcommand("data", "Token shards for training");
  command->require_subcommand(1);
  command->footer("Example:\n  fulgur data pack notes/ --tokenizer tokenizer.json --out shards");
  auto* packer = command->add_subcommand("pack", "Files and folders (text, HTML, JSON Lines; also gzipped) to token shards");
  packer->add_option("inputs", flags->inputs, "Files and folders")->required();
  packer->add_option("--tokenizer", flags->tokenizer, "tokenizer.json; a copy goes into the folder")->required();
  packer->add_option("--out", flags->out, "Folder of shards to write")->required();
  packer->add_option("--holdout-every", flags->holdout_every,
                     "Every n-th document is for validation (default: one of 50, drawn)");
  packer->add_option("--seed", flags->seed, "Draws the validation documents")->capture_default_str();
  packer->footer("Example:\n  fulgur data pack notes/ --tokenizer tokenizer.json --out shards");
  packer->callback([=, &common] { pack_command(*flags, common.json); });
}

}  // namespace fulgur::cli
