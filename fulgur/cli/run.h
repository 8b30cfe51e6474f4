// Run directories: run.json (recipe, model, machine, seconds of each step), beside metrics.jsonl, checkpoints/, data/,
// samples/, eval.json, report.html. Everything here resumes: what is done is not done again.
#pragma once

#include "fulgur/cli/cli.h"
#include "fulgur/cli/recipe.h"
#include "fulgur/train/trainer.h"

namespace fulgur::cli {

struct RunOptions {
  std::filesystem::path
      init;            // a model to start from in place of fresh weights; the recipe's [model] keys change its config.json
  bool force = false;  // go on with another recipe, or from a checkpoint of other settings
  std::filesystem::path messages;  // of sft (default: data/messages.jsonl of the run)
  std::string stage;               // the one stage this call trains, whose settings must agree; empty: all
};

struct Run {
  // Opens or makes the directory. Throws InputError when run.json was written by another recipe.
  Run(std::filesystem::path folder, const Recipe& recipe, ProcessGroup& group, const RunOptions& options = {});

  void text();         // fetched or the user's own -> text path
  void tokenizer();    // -> data/tokenizer.json
  void pack();         // -> data/*.bin, data/lead_in/*.bin
  void demonstrate();  // -> data/messages.jsonl, where the recipe has demos
  // Starts from `init`, the newest checkpoint of the stage before, or fresh weights. False when stopped by a signal.
  bool train(const std::string& stage);
  // Reinforcement learning, from `init` or what sft ended with.
  bool reinforce();
  void evaluate();  // -> eval.json, samples/
  void report();    // -> report.html

  std::filesystem::path folder, data;
  Recipe recipe;

 private:
  // Runs `work` once in the life of the directory and records its seconds under `name`.
  void once(const std::string& name, const std::string& label, const std::function<void()>& work);
  std::filesystem::path initial_model();
  void record_start(const std::string& stage);
  std::filesystem::path text_path() const;
  void add_drills() const;
  void pack_lead_in() const;
  void save();
  ProcessGroup& group_;  // its leader alone writes
  RunOptions options_;
  Json config_;  // of the model this run makes
  Json record_;
};

}  // namespace fulgur::cli
