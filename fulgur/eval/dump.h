// Every tensor of a forward pass by name, to compare with any other implementation. Names and shapes are those of
// tests/golden/model/README.md: logits, layer.i.*, mtp.logits, losses; grad.* grad_mtp.*; kl_*; greedy decoding.
#pragma once

#include "fulgur/io/safetensors.h"
#include "fulgur/model/transformer.h"

namespace fulgur {

struct DumpOptions {
  Attention attention = Attention::sparse;
  at::ScalarType type = at::kFloat;
  CacheFormat cache = {};  // logits and greedy; logits of one that is not plain go through it in one call
  int64_t chunk = 0;       // logits only: tokens a call through the cache; 0: one pass without one
  bool hadamard = false, simulate_fp8 = false;
  const Tensors* replay = nullptr;  // layer.i.selected, layer.i.experts of an earlier dump are forced
};

// tokens_BT: int32. Selected keys count from their sequence's first, ascending, -1 padding. Throws InputError on tokens
// outside the vocabulary, shapes that do not fit, and a replay that does not belong to the tokens.
Tensors dump_forward(const Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& options);
Tensors dump_logits(const Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& options);
// Gradients of loss and mtp_loss; MTP's embedding and head count as tensors of their own: load with share_mtp false.
Tensors dump_grad(Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& options);
// Both stages: kl_dense.* and kl_sparse.* with their gradients.
Tensors dump_kl(Transformer& model, const at::Tensor& tokens_BT, const DumpOptions& options);
// Decodes `steps` tokens through the cache, the most likely one each time.
Tensors dump_greedy(const Transformer& model, const at::Tensor& prompt, int64_t steps, const DumpOptions& options);

}  // namespace fulgur
