// Keys that query rows selected, as ops receive them: int32 [N, K], ascending, -1 behind a row's last.
#pragma once

#include <ATen/core/Tensor.h>

#include "fulgur/base/error.h"

namespace fulgur::ops {

inline void check_selected(const at::Tensor& selected_NK, int64_t rows, int64_t keys, const char* area) {
  FULGUR_CHECK(selected_NK.dim() == 2 && selected_NK.size(0) == rows && selected_NK.scalar_type() == at::kInt, "[", area,
               "] expected an int32 selection [", rows, ", K], got ", selected_NK.sizes());
  int64_t K = selected_NK.size(1);
  for (int64_t row = 0; row < rows; ++row) {
    const int* at = selected_NK.const_data_ptr<int>() + row * K;
    // As unsigned numbers, in which -1 is the largest: no branch, so that the loop runs in vectors.
    unsigned wrong = 0, limit = unsigned(keys);
    for (int64_t i = 0; i < K; ++i) wrong |= unsigned(unsigned(at[i]) >= limit) & unsigned(at[i] != -1);
    for (int64_t i = 1; i < K; ++i) wrong |= unsigned(unsigned(at[i]) <= unsigned(at[i - 1])) & unsigned(at[i] != -1);
    for (int64_t i = 0; wrong && i < K; ++i) {
      FULGUR_CHECK(at[i] >= -1 && at[i] < keys, "[", area, "] expected keys below ", keys, ", got ", at[i]);
      FULGUR_CHECK(at[i] == -1 || i == 0 || (at[i - 1] >= 0 && at[i - 1] < at[i]), "[", area,
                   "] expected a row's keys ascending and -1 only behind them, got ", at[i], " behind ", at[i - 1], " in row ",
                   row);
    }
  }
}

}  // namespace fulgur::ops
