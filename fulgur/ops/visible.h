// Key ranges [begin, end) of query rows, as ops receive them: int32 [N, 2].
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>

#include <algorithm>
#include <vector>

#include "fulgur/base/error.h"

namespace fulgur::ops {

struct RowBlock {
  int64_t first, last;
};

// Blocks of at most `most` neighbouring rows that begin at the same key.
inline std::vector<RowBlock> row_blocks(const at::Tensor& visible_N2, int64_t most) {
  const int* at = visible_N2.const_data_ptr<int>();
  std::vector<RowBlock> blocks;
  for (int64_t row = 0; row < visible_N2.size(0); ++row) {
    if (blocks.empty() || at[2 * row] != at[2 * blocks.back().first] || row - blocks.back().first == most)
      blocks.push_back({row, row});
    blocks.back().last = row + 1;
  }
  return blocks;
}

// Blocks whose key ranges overlap add to the same gradients, so they form one task, in row order. Sorted by first key,
// a task ends where a block begins at or behind everything seen so far.
inline std::vector<std::vector<RowBlock>> key_disjoint(const at::Tensor& visible_N2, int64_t most) {
  const int* at = visible_N2.const_data_ptr<int>();
  auto blocks = row_blocks(visible_N2, most);
  std::stable_sort(blocks.begin(), blocks.end(),
                   [&](const RowBlock& a, const RowBlock& b) { return at[2 * a.first] < at[2 * b.first]; });
  std::vector<std::vector<RowBlock>> tasks;
  int64_t reach = -1;
  for (const auto& block : blocks) {
    if (at[2 * block.first] >= reach) tasks.emplace_back();
    tasks.back().push_back(block);
    for (int64_t row = block.first; row < block.last; ++row) reach = std::max<int64_t>(reach, at[2 * row + 1]);
  }
  return tasks;
}

inline void check_visible(const at::Tensor& visible_N2, int64_t rows, int64_t keys, const char* area) {
  FULGUR_CHECK(visible_N2.dim() == 2 && visible_N2.size(0) == rows && visible_N2.size(1) == 2 &&
                   visible_N2.scalar_type() == at::kInt && visible_N2.is_contiguous(),
               "[", area, "] expected int32 key ranges [", rows, ", 2], got ", visible_N2.sizes());
  const int* at = visible_N2.const_data_ptr<int>();
  for (int64_t i = 0; i < rows; ++i)
    FULGUR_CHECK(at[2 * i] >= 0 && at[2 * i + 1] <= keys, "[", area, "] expected key ranges within ", keys, " keys, got [",
                 at[2 * i], ", ", at[2 * i + 1], ")");
}

// [N, S] true where the row may see the key; for references.
inline at::Tensor visible_mask(const at::Tensor& visible_N2, int64_t keys) {
  auto key = at::arange(keys, visible_N2.options());
  return (key >= visible_N2.select(1, 0).unsqueeze(1)).logical_and(key < visible_N2.select(1, 1).unsqueeze(1));
}

}  // namespace fulgur::ops
