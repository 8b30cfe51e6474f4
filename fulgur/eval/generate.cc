#include "fulgur/eval/generate.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "fulgur/base/error.h"
#include "fulgur/base/random.h"
#include "fulgur/ops/log_prob/log_prob.h"

namespace fulgur {
namespace {

// From the smallest set of most likely tokens whose probability reaches top_p.
int32_t sample(const float* logits, int64_t size, const GenerateOptions& options, RandomStream& random) {
  if (options.temperature <= 0) return int32_t(std::max_element(logits, logits + size) - logits);
  float top = *std::max_element(logits, logits + size);
  std::vector<double> weight(size);
  double total = 0;
  for (int64_t i = 0; i < size; ++i) total += weight[i] = std::exp(double(logits[i] - top) / options.temperature);
  std::vector<int32_t> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return weight[a] > weight[b] || (weight[a] == weight[b] && a < b); });
  double kept = 0;
  size_t count = 0;
  while (count < order.size() && kept < options.top_p * total) kept += weight[order[count++]];
  double draw = random.uniform() * kept;
  for (size_t i = 0; i < count; ++i) {
    draw -= weight[order[i]];
    if (draw <= 0) return order[i];
  }
  return order[count - 1];
}

}  // namespace

int64_t generate(const Transformer& model, const std::vector<int32_t>& prompt, const GenerateOptions& options,
                 const std::function<bool(int32_t)>& token) {
  FULGUR_CHECK(!prompt.empty(), "[generate] expected a prompt of at least one token, got none");
  FULGUR_CHECK(options.temperature >= 0 && options.top_p > 0 && options.top_p <= 1,
               "[generate] expected temperature >= 0 and 0 < top-p <= 1, got ", options.temperature, " and ", options.top_p);
  for (int32_t id : prompt)
    FULGUR_CHECK(id >= 0 && id < model.config().vocab_size, "[generate] expected token ids below ", model.config().vocab_size,
                 ", got ", id);
  c10::AutoGradMode no_grad(false);
  Cache cache(model.config(), options.attention, options.type, 1, int64_t(prompt.size()) + options.max_tokens);
  RandomStream random(options.seed, "generate");
  std::vector<int32_t> next = prompt;
  for (int64_t made = 0; made < options.max_tokens; ++made) {
    auto hidden = model.forward(cache.append({0}, {next}), {.attention = options.attention, .type = options.type}, &cache);
    auto logits = ops::logits(hidden.narrow(0, hidden.size(0) - 1, 1), model.weights().lm_head);
    next = {sample(logits.const_data_ptr<float>(), logits.size(1), options, random)};
    if (!token(next[0]) || next[0] == options.eos) return made + 1;
  }
  return options.max_tokens;
}

}  // namespace fulgur
