#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/model/transformer.h"

namespace fulgur {

Batch pack_documents(const at::Tensor& tokens_N, const std::vector<int64_t>& lengths) {
  int64_t N = tokens_N.size(0), row = 0;
  auto options = tokens_N.options().dtype(at::kInt);
  Batch batch{tokens_N.to(at::kInt), at::empty({N}, options), at::empty({N, 2}, options), {}};
  int* position = batch.positions_N.mutable_data_ptr<int>();
  int* visible = batch.visible_N2.mutable_data_ptr<int>();
  for (int64_t length : lengths) {
    FULGUR_CHECK(length > 0 && row + length <= N, "[batch] expected documents that fill ", N, " rows, got more");
    int begin = int(row);
    for (int64_t i = 0; i < length; ++i, ++row)
      position[row] = int(i), visible[2 * row] = begin, visible[2 * row + 1] = int(row) + 1;
  }
  FULGUR_CHECK(row == N, "[batch] expected documents that fill ", N, " rows, got ", row);
  return batch;
}

Cache::Cache(const ModelConfig& config, Attention attention, at::ScalarType type, int64_t sequences, int64_t capacity_)
    : lengths(sequences, 0),
      capacity(capacity_) {
  int64_t S = sequences * capacity, H = config.num_attention_heads;
  auto options = at::TensorOptions().dtype(type);
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) {
    Layer layer;
    if (attention == Attention::sparse) {
      layer.kv_SC = at::zeros({S, config.kv_lora_rank + config.qk_rope_head_dim}, options);
      layer.index_SD = at::zeros({S, config.index_head_dim}, options);
    } else {
      layer.k_SHE = at::zeros({S, H, config.qk_nope_head_dim + config.qk_rope_head_dim}, options);
      layer.v_SHV = at::zeros({S, H, config.v_head_dim}, options);
    }
    layers.push_back(layer);
  }
}

Batch Cache::append(const std::vector<int64_t>& which, const std::vector<std::vector<int32_t>>& tokens) {
  FULGUR_CHECK(which.size() == tokens.size(), "[cache] expected tokens for ", which.size(), " sequences, got ", tokens.size());
  int64_t N = 0;
  for (const auto& some : tokens) N += int64_t(some.size());
  auto ints = at::TensorOptions().dtype(at::kInt);
  Batch batch{at::empty({N}, ints), at::empty({N}, ints), at::empty({N, 2}, ints),
              at::empty({N}, at::TensorOptions().dtype(at::kLong))};
  int* token = batch.tokens_N.mutable_data_ptr<int>();
  int* position = batch.positions_N.mutable_data_ptr<int>();
  int* visible = batch.visible_N2.mutable_data_ptr<int>();
  int64_t* slot = batch.slots_N.mutable_data_ptr<int64_t>();
  int64_t row = 0;
  for (size_t i = 0; i < which.size(); ++i) {
    int64_t& length = lengths.at(which[i]);
    FULGUR_CHECK(length + int64_t(tokens[i].size()) <= capacity, "[cache] expected at most ", capacity,
                 " tokens in a sequence, got ", length + int64_t(tokens[i].size()));
    int64_t base = which[i] * capacity;
    for (int32_t id : tokens[i]) {
      token[row] = id, position[row] = int(length), slot[row] = base + length;
      visible[2 * row] = int(base), visible[2 * row + 1] = int(base + length + 1);
      ++row, ++length;
    }
  }
  return batch;
}

}  // namespace fulgur
