// Keys that lie in pages of 64: key i of a call is key i % 64 of page pages[i / 64]. Ops number keys as if they lay in a row, so
// a result does not depend on where a page lies, and pages may be shared. Without pages keys lie as numbered. No torch.
#pragma once

#include <cstdint>

namespace fulgur {

constexpr int64_t kPageKeys = 64;  // as published (spec D.4, D.6)

// Where the rows of a page follow one another.
inline int64_t row_of_key(const int32_t* pages, int64_t key) {
  return pages ? pages[key / kPageKeys] * kPageKeys + key % kPageKeys : key;
}

}  // namespace fulgur
