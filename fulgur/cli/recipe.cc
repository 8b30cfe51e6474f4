#include "fulgur/cli/recipe.h"

#include <toml++/toml.h>

#include <algorithm>
#include <cmath>

#include "fulgur/base/error.h"
#include "fulgur/base/file.h"
#include "fulgur/cli/cli.h"

namespace fulgur::cli {
namespace {

constexpr size_t kLongest = 16384;  // dotted keys nest tables, and toml++ destroys those by recursion

std::string where(const std::string& file, const toml::node& node) { return cat(file, ":", node.source().begin.line); }

double number(const std::string& file, const std::string& key, const toml::node& node) {
  if (auto text = node.value_exact<std::string>()) {
    try {
      return parse_count(*text, key);
    } catch (const UsageError&) {
      throw InputError(
          cat("[recipe] ", where(file, node), ": ", key, ": expected a number or one such as \"3M\", got \"", *text, "\""));
    }
  }
  auto value = node.value<double>();
  FULGUR_CHECK(value && std::isfinite(*value), "[recipe] ", where(file, node), ": ", key,
               ": expected a number, got something else");
  return *value;
}

void assign(const std::string& file, const std::string& key, const toml::node& node, double& field) {
  field = number(file, key, node);
}
void assign(const std::string& file, const std::string& key, const toml::node& node, bool& field) {
  auto value = node.value_exact<bool>();
  FULGUR_CHECK(value, "[recipe] ", where(file, node), ": ", key, ": expected true or false, got something else");
  field = *value;
}
template <class Integer>
requires std::is_integral_v<Integer>
void assign(const std::string& file, const std::string& key, const toml::node& node, Integer& field) {
  double value = number(file, key, node);
  FULGUR_CHECK(value == std::floor(value) && value >= 0 && value < 9e15, "[recipe] ", where(file, node), ": ", key,
               ": expected a whole number, got ", value);
  field = Integer(value);
}
void assign(const std::string& file, const std::string& key, const toml::node& node, std::string& field) {
  auto value = node.value_exact<std::string>();
  FULGUR_CHECK(value, "[recipe] ", where(file, node), ": ", key, ": expected a string, got something else");
  field = *value;
}

// `visit` is visit_stage or visit_rl of what the section fills.
template <class Visit>
void read_section(const std::string& file, const std::string& section, const toml::table& table, const Visit& visit) {
  for (const auto& entry : table) {
    const toml::key& key = entry.first;
    const toml::node& node = entry.second;
    bool known = false;
    visit([&](const char* name, auto& field) {
      if (key.str() != name) return;
      assign(file, cat(section, ".", name), node, field), known = true;
    });
    FULGUR_CHECK(known, "[recipe] ", where(file, node), ": expected a key of a stage, got ", section, ".", key.str(),
                 "\n  hint: `fulgur train ", section, " --help` lists them");
  }
}

Json model_value(const std::string& file, const toml::node& node, int depth = 0) {
  FULGUR_CHECK(depth < 3, "[recipe] ", where(file, node), ": expected the tables of config.json, got one deeper");
  if (auto value = node.value_exact<int64_t>()) return *value;
  if (auto value = node.value_exact<double>()) return *value;
  if (auto value = node.value_exact<bool>()) return *value;
  if (auto value = node.value_exact<std::string>()) return *value;
  if (auto* table = node.as_table()) {
    Json out = Json::object();
    for (const auto& [key, child] : *table) out[std::string(key.str())] = model_value(file, child, depth + 1);
    return out;
  }
  throw InputError(cat("[recipe] ", where(file, node), ": expected a number, string or table, got an array or date"));
}

}  // namespace

StageConfig& Recipe::stage(const std::string& name) {
  return name == "pretrain" ? pretrain : name == "warmup" ? warmup : name == "sparse" ? sparse : sft;
}

Recipe read_recipe(const std::filesystem::path& path, double scale) {
  std::string file = path.string();
  toml::table table;
  std::string text = read_file(path);
  FULGUR_CHECK(text.size() <= kLongest, "[recipe] ", file, ": expected at most ", kLongest, " bytes, got ", text.size());
  try {
    table = toml::parse(text, file);
  } catch (const toml::parse_error& error) {
    throw InputError(cat("[recipe] ", file, ":", error.source().begin.line, ": expected TOML, got: ", error.description()));
  }
  Recipe recipe;
  for (const auto& [key, node] : table) {
    std::string name(key.str());
    if (name == "scale") assign(file, name, node, recipe.scale);
    else if (name == "seed") assign(file, name, node, recipe.seed);
    else if (name == "text") assign(file, name, node, recipe.text);
    else if (name == "vocab_size") assign(file, name, node, recipe.vocab_size);
    else if (name == "holdout_every") assign(file, name, node, recipe.holdout_every);
    else if (name == "lead_in") assign(file, name, node, recipe.lead_in);
    else if (name == "drills") assign(file, name, node, recipe.drills);
    else if (name == "demos") assign(file, name, node, recipe.demos.tasks);
    else if (name == "forms") assign(file, name, node, recipe.demos.forms);
    else if (name == "demo_count") assign(file, name, node, recipe.demos.count);
    else if (name == "hasty") assign(file, name, node, recipe.demos.hasty);
    else if (name == "hasty_from") assign(file, name, node, recipe.demos.hasty_from);
    else if (name == "model" && node.is_table()) recipe.model = model_value(file, node);
    else if (std::find(std::begin(kStages), std::end(kStages), name) != std::end(kStages) && node.is_table())
      read_section(file, name, *node.as_table(), [&](const auto& visit) { visit_stage(recipe.stage(name), visit); });
    else if (name == "rl" && node.is_table())
      read_section(file, name, *node.as_table(), [&](const auto& visit) { visit_rl(recipe.rl, visit); });
    else
      throw InputError(cat("[recipe] ", where(file, node),
                           ": expected scale, seed, text, vocab_size, holdout_every, lead_in, drills, demos, forms, "
                           "demo_count, hasty, hasty_from or the tables model, pretrain, warmup, sparse, sft, rl; got ",
                           name));
  }
  if (scale > 0) recipe.scale = scale;
  model_config(recipe);
  for (std::string name : kStages) {
    auto& tokens = recipe.stage(name).tokens;
    tokens = std::llround(double(tokens) * recipe.scale * recipe.scale);
  }
  recipe.lead_in = std::llround(double(recipe.lead_in) * recipe.scale * recipe.scale);
  return recipe;
}

Json recipe_json(const Recipe& recipe) {
  Json out = {{"scale", recipe.scale},
              {"seed", recipe.seed},
              {"text", recipe.text},
              {"vocab_size", recipe.vocab_size},
              {"holdout_every", recipe.holdout_every},
              {"lead_in", recipe.lead_in},
              {"drills", recipe.drills},
              {"demos", recipe.demos.tasks},
              {"forms", recipe.demos.forms},
              {"demo_count", recipe.demos.count},
              {"hasty", recipe.demos.hasty},
              {"hasty_from", recipe.demos.hasty_from},
              {"model", recipe.model}};
  for (std::string name : kStages)
    visit_stage(const_cast<Recipe&>(recipe).stage(name), [&](const char* key, const auto& value) { out[name][key] = value; });
  visit_rl(recipe.rl, [&](const char* key, const auto& value) { out["rl"][key] = value; });
  return out;
}

ModelConfig model_config(const Recipe& recipe) {
  FULGUR_CHECK(recipe.scale >= 0.25 && recipe.scale <= 64, "[recipe] scale: expected 0.25 to 64, got ", recipe.scale);
  int64_t width = std::max<int64_t>(1, std::llround(recipe.scale * 4)) * 32;  // 128 at scale 1
  ModelConfig c;
  c.vocab_size = recipe.vocab_size;
  c.hidden_size = width;
  c.intermediate_size = 3 * width;
  c.moe_intermediate_size = width / 2;
  c.num_hidden_layers = std::max<int64_t>(2, 2 + 2 * std::llround(recipe.scale));
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = 1;
  c.num_attention_heads = width / 32;
  c.q_lora_rank = c.kv_lora_rank = width / 2;
  c.qk_nope_head_dim = c.v_head_dim = 32;
  c.qk_rope_head_dim = 16;
  c.n_routed_experts = 8 * std::max<int64_t>(1, std::llround(recipe.scale));
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.routed_scaling_factor = 1;
  c.index_n_heads = width / 32;
  c.index_head_dim = 32;
  c.index_topk = std::max<int64_t>(1, recipe.pretrain.context / 8);
  c.max_position_embeddings = recipe.pretrain.context;
  Json json = config_json(c);
  for (const auto& [key, value] : recipe.model.items()) {
    FULGUR_CHECK(json.contains(key) || key == "rope_scaling", "[recipe] model.", key,
                 ": expected a key of config.json, got an unknown one");
    json[key] = value;
  }
  return parse_config(json, "recipe [model]");
}

StageConfig effective_stage(const Recipe& recipe, const std::string& name) {
  StageConfig stage = const_cast<Recipe&>(recipe).stage(name);
  stage.seed = recipe.seed * 3 + uint64_t(stage.kind);
  return stage;
}

}  // namespace fulgur::cli
