// Pages (pages.h) as ops receive them: int32 [P], numbers of pages among the stored ones.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "fulgur/base/error.h"
#include "fulgur/ops/pages.h"

namespace fulgur::ops {

// The keys of a call, of which `stored` rows are there: `count` of them; `pages` is null where they lie as numbered.
struct PagedKeys {
  PagedKeys(const std::optional<at::Tensor>& pages_P, int64_t stored, const char* area) : count(stored) {
    if (!pages_P) return;
    FULGUR_CHECK(pages_P->dim() == 1 && pages_P->scalar_type() == at::kInt && pages_P->is_contiguous(), "[", area,
                 "] expected int32 pages [P], got ", pages_P->scalar_type(), " ", pages_P->sizes());
    pages = pages_P->const_data_ptr<int>();
    count = pages_P->size(0) * kPageKeys;
    for (int64_t i = 0; i < pages_P->size(0); ++i)
      FULGUR_CHECK(pages[i] >= 0 && (pages[i] + 1) * kPageKeys <= stored, "[", area, "] expected pages below ",
                   stored / kPageKeys, ", got ", pages[i]);
  }
  // Key ranges int32 [N, 2] of rows that walk through pages.
  void check_ranges(const at::Tensor& visible_N2, const char* area) const {
    const int* at = visible_N2.const_data_ptr<int>();
    for (int64_t row = 0; pages && row < visible_N2.size(0); ++row)
      FULGUR_CHECK(at[2 * row] % kPageKeys == 0, "[", area, "] expected ranges that begin with a page, got ", at[2 * row]);
  }
  const int* pages = nullptr;
  int64_t count;
};

inline std::optional<at::Tensor> given(const at::Tensor& pages) { return pages.defined() ? std::optional(pages) : std::nullopt; }

}  // namespace fulgur::ops
