// A model of fresh weights, one forward pass: logits of the last token.
#include <cstdio>

#include "fulgur/model/transformer.h"
#include "fulgur/ops/log_prob/log_prob.h"

int main(int, char** argv) {
  auto config = fulgur::read_config(argv[1]);
  fulgur::Transformer model(config, fulgur::init_weights(config, 1));
  fulgur::Cache cache(config, fulgur::Attention::sparse, at::kFloat, 1, 8);
  auto hidden_ND = model.forward(cache.append({0}, {{1, 2, 3}}), {}, &cache);
  auto logits_NV = fulgur::ops::logits(hidden_ND, model.weights().lm_head);
  std::printf("%lld logits for each of %lld tokens\n", (long long)logits_NV.size(1), (long long)logits_NV.size(0));
}
