// How inference may store weights and keys, by the names that flags use. No torch. Kernels include this: nothing here may be made
// when a program starts, since that code is compiled for every instruction set and runs on any processor.
#pragma once

#include <array>
#include <string>

#include "fulgur/base/error.h"

namespace fulgur {

// Weights (ops/linear/linear.h has the details):
//   fp8   e4m3, one scale a block of 128 x 128, a power of two (spec D.2): the product is that of the values so stored
//   int8  whole numbers to +-127, a scale for 128 inputs of an output; 8.1 bits a weight
//   int4  from -8 to 7, a scale for 32 inputs, chosen for the least square error; 4.5 bits
enum class WeightFormat { plain, fp8, int8, int4 };
inline constexpr std::array<const char*, 4> kWeightFormats{"plain", "fp8", "int8", "int4"};

// Keys in a cache (ops/cached_keys.h): latents plain or fp8, indexer keys plain, fp8 or int8. Plain is the activations' type.
enum class KeyFormat { plain, fp8, int8 };
struct CacheFormat {
  KeyFormat latents = KeyFormat::plain, index = KeyFormat::plain;
  bool plain() const { return latents == KeyFormat::plain && index == KeyFormat::plain; }
};
inline constexpr std::array<const char*, 4> kCacheFormats{"plain", "fp8", "int8", "fp8+int8"};

inline WeightFormat weight_format(const std::string& name) {
  for (size_t i = 0; i < kWeightFormats.size(); ++i)
    if (name == kWeightFormats[i]) return WeightFormat(i);
  throw InputError(cat("[format] expected weights as plain, fp8, int8 or int4, got ", name));
}

// fp8: both; int8: indexer keys alone; fp8+int8: latents, then indexer keys.
inline CacheFormat cache_format(const std::string& name) {
  if (name == "plain") return {};
  if (name == "fp8") return {KeyFormat::fp8, KeyFormat::fp8};
  if (name == "int8") return {KeyFormat::plain, KeyFormat::int8};
  FULGUR_CHECK(name == "fp8+int8", "[format] expected a cache as plain, fp8, int8 or fp8+int8, got ", name);
  return {KeyFormat::fp8, KeyFormat::int8};
}

}  // namespace fulgur
