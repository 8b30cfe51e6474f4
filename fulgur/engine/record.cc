// Choices out of the pages of a text.
#include <algorithm>

#include "fulgur/engine/loop.h"

namespace fulgur {
namespace {

// Adds a layer's choices, where it makes any.
void add_layer(Choices& choices, const at::Tensor& chosen_Sk, const std::vector<int32_t>& pages, int64_t positions) {
  if (!chosen_Sk.defined()) return;
  int64_t k = chosen_Sk.size(1);
  const int32_t* chosen = chosen_Sk.const_data_ptr<int32_t>();
  for (int64_t first = 0; first < positions; first += kPageKeys) {
    const int32_t* page = chosen + row_of_key(pages.data(), first) * k;
    choices.ids.insert(choices.ids.end(), page, page + std::min(kPageKeys, positions - first) * k);
  }
  ++choices.layers, choices.positions = positions, choices.k = k;
}

}  // namespace

Record recorded(const Cache& cache, const std::vector<int32_t>& pages, int64_t positions) {
  Record record;
  for (const auto& layer : cache.layers) {
    add_layer(record.experts, layer.experts_Sk, pages, positions);
    add_layer(record.selected, layer.selected_SK, pages, positions);
  }
  return record;
}

}  // namespace fulgur
