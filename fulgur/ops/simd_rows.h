// Rows of f32 or bf16 as f32 vectors, for kernels.cc files: Row(pointer, type) reads and writes kLanes elements, the
// last vector of a row padded with zeros.
#pragma once

#include <algorithm>

#include "fulgur/ops/linear/gemm.h"
#include "fulgur/ops/simd.h"

namespace fulgur::FULGUR_ISA {

// Where element `offset` of rows of a type lies.
inline const void* element(const void* base, Storage type, int64_t offset) {
  return static_cast<const char*>(base) + offset * (type == Storage::f32 ? 4 : 2);
}

inline Vec read(const void* base, Storage type, int64_t at, int64_t count) {
  float lane[kLanes] = {};
  if (type == Storage::f32) {
    auto* from = static_cast<const float*>(base) + at;
    if (count >= kLanes) return load(from);
    for (int64_t i = 0; i < count; ++i) lane[i] = from[i];
  } else {
    auto* from = static_cast<const uint16_t*>(base) + at;
    if (count >= kLanes) return from_bf16(from);
    for (int64_t i = 0; i < std::min<int64_t>(count, kLanes); ++i) lane[i] = from_bf16(from[i]);
  }
  return load(lane);
}

inline void write(void* base, Storage type, int64_t at, int64_t count, Vec value) {
  if (type == Storage::f32 && count >= kLanes) return store(static_cast<float*>(base) + at, value);
  if (type == Storage::bf16 && count >= kLanes) return to_bf16(value, static_cast<uint16_t*>(base) + at);
  float lane[kLanes];
  store(lane, value);
  for (int64_t i = 0; i < std::min<int64_t>(count, kLanes); ++i) {
    if (type == Storage::f32) static_cast<float*>(base)[at + i] = lane[i];
    else static_cast<uint16_t*>(base)[at + i] = to_bf16(lane[i]);
  }
}

// work(at, count) for each vector of [0, size): the loop over whole vectors knows that they are whole, and has no branch for
// the last one.
template <class Work>
__attribute__((flatten)) inline void for_vectors(int64_t size, const Work& work) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) work(at, int64_t(kLanes));
  if (at < size) work(at, size - at);
}

}  // namespace fulgur::FULGUR_ISA
