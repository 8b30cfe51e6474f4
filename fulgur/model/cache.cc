#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "fulgur/base/error.h"
#include "fulgur/model/transformer.h"
#include "fulgur/ops/cached_keys.h"
#include "fulgur/ops/pages.h"

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

int64_t pages_for(int64_t tokens) { return (tokens + kPageKeys - 1) / kPageKeys; }

Cache::Cache(const ModelConfig& config, Attention attention, at::ScalarType type, int64_t pages, CacheExtras extras) {
  int64_t S = pages * kPageKeys, H = config.key_heads();
  auto options = at::TensorOptions().dtype(type);
  FULGUR_CHECK(attention == Attention::sparse || extras.format.plain(),
               "[cache] expected a plain cache for dense attention, got another format\n  hint: --attention sparse");
  FULGUR_CHECK(config.has_latents() || extras.format.latents == KeyFormat::plain,
               "[cache] expected plain keys for grouped-query attention, got another format");
  FULGUR_CHECK(!config.tied_index() || (extras.format.index == KeyFormat::plain && extras.format.latents == KeyFormat::plain),
               "[cache] expected plain keys, which tied indexers read, got another format");
  auto add_layer = [&] {
    auto& layer = layers.emplace_back();
    if (attention == Attention::sparse) {
      if (config.has_latents())
        layer.kv_SC = ops::empty_latents(pages, config.kv_lora_rank, config.qk_rope_head_dim, extras.format.latents, type);
      else layer.kv_SC = at::empty({S, H, 2 * config.v_head_dim}, options);
      if (!config.tied_index()) layer.index_PDK = ops::empty_index_keys(pages, config.index_head_dim, extras.format.index, type);
    } else {
      layer.k_SHE = at::empty({S, H, config.qk_nope_head_dim + config.qk_rope_head_dim}, options);
      layer.v_SHV = at::empty({S, H, config.v_head_dim}, options);
    }
  };
  for (int64_t i = 0; i < config.num_hidden_layers; ++i) add_layer();
  for (int64_t i = 0; extras.choices && i < config.num_hidden_layers; ++i) {
    auto ints = at::TensorOptions().dtype(at::kInt);
    if (i >= config.first_k_dense_replace) layers[i].experts_Sk = at::empty({S, config.num_experts_per_tok}, ints);
    if (attention == Attention::sparse) layers[i].selected_SK = at::empty({S, config.index_topk}, ints);
  }
  if (!extras.mtp) return;
  add_layer();
  auto& mtp = layers.back();
  for (auto* keys : {&mtp.kv_SC, &mtp.index_PDK, &mtp.k_SHE, &mtp.v_SHV})
    if (keys->defined()) keys->zero_();
}

at::Tensor Cache::Layer::index_keys(const ModelConfig& config) const {
  if (!config.tied_index()) return index_PDK;
  if (config.has_latents()) return kv_SC.view({-1, kPageKeys, 1, kv_SC.size(1)});
  int64_t E = config.v_head_dim;
  return kv_SC.view({-1, kPageKeys, kv_SC.size(1), 2 * E}).narrow(3, E, E);
}

int64_t Cache::bytes() const {
  int64_t total = 0;
  for (auto layer : layers)
    for (auto* tensors : {&layer.kv_SC, &layer.index_PDK, &layer.k_SHE, &layer.v_SHV, &layer.experts_Sk, &layer.selected_SK})
      if (tensors->defined()) total += int64_t(tensors->nbytes());
  return total;
}

void Cache::copy_keys(int64_t from_page, int64_t to_page, int64_t count) {
  for (auto& layer : layers) {
    for (auto* keys : {&layer.kv_SC, &layer.k_SHE, &layer.v_SHV, &layer.experts_Sk, &layer.selected_SK})
      if (keys->defined()) keys->narrow(0, to_page * kPageKeys, count).copy_(keys->narrow(0, from_page * kPageKeys, count));
    if (layer.index_PDK.defined()) ops::copy_index_keys(layer.index_PDK, from_page, to_page, count);
  }
}

std::vector<CachedSequence> cached_sequences(int64_t count, int64_t capacity) {
  std::vector<CachedSequence> sequences(count);
  int32_t page = 0;
  for (auto& sequence : sequences)
    for (int64_t i = 0; i < pages_for(capacity); ++i) sequence.pages.push_back(page++);
  return sequences;
}

Batch append(const std::vector<CachedSequence*>& sequences, const std::vector<std::vector<int32_t>>& tokens) {
  FULGUR_CHECK(sequences.size() == tokens.size(), "[cache] expected tokens for ", sequences.size(), " sequences, got ",
               tokens.size());
  int64_t N = 0, P = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    int64_t length = sequences[i]->length + int64_t(tokens[i].size()), room = int64_t(sequences[i]->pages.size()) * kPageKeys;
    FULGUR_CHECK(length <= room, "[cache] expected at most ", room, " tokens in a sequence, got ", length);
    N += int64_t(tokens[i].size()), P += pages_for(length);
  }
  auto ints = at::TensorOptions().dtype(at::kInt);
  Batch batch{at::empty({N}, ints), at::empty({N}, ints), at::empty({N, 2}, ints),
              at::empty({N}, at::TensorOptions().dtype(at::kLong)), at::empty({P}, ints)};
  int* token = batch.tokens_N.mutable_data_ptr<int>();
  int* position = batch.positions_N.mutable_data_ptr<int>();
  int* visible = batch.visible_N2.mutable_data_ptr<int>();
  int64_t* slot = batch.slots_N.mutable_data_ptr<int64_t>();
  int* page = batch.pages_P.mutable_data_ptr<int>();
  int64_t row = 0, begin = 0;  // the sequence's first key
  for (size_t i = 0; i < tokens.size(); ++i) {
    auto& [pages, length] = *sequences[i];
    for (int32_t id : tokens[i]) {
      token[row] = id, position[row] = int(length), slot[row] = row_of_key(pages.data(), length);
      visible[2 * row] = int(begin), visible[2 * row + 1] = int(begin + length + 1);
      ++row, ++length;
    }
    page = std::copy_n(pages.data(), pages_for(length), page);
    begin += pages_for(length) * kPageKeys;
  }
  return batch;
}

}  // namespace fulgur
