// Eight stored elements at a time as floats, with the results that Type::load has for each. The
// compiler makes of it what the function's target has: one vector of AVX2, or two of SSE2.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ops/embedding/rows.h"

namespace vramkit::embedding {

inline constexpr uint32_t kVector = 8;

template <class T>
struct VectorOf {
  using type [[gnu::vector_size(kVector * sizeof(T))]] = T;
};
using Floats = VectorOf<float>::type;
using Words = VectorOf<uint32_t>::type;

/// Writes to a reference: how vectors are returned depends on the target.
template <class Type>
[[gnu::always_inline]] inline void load_floats(const typename Type::Stored* from, Floats& to) {
  typename VectorOf<typename Type::Stored>::type stored;
  std::memcpy(&stored, from, sizeof stored);
  if constexpr (std::is_same_v<Type, Float32>) {
    to = stored;
  } else if constexpr (std::is_same_v<Type, Int8>) {
    to = __builtin_convertvector(stored, Floats);
  } else if constexpr (std::is_same_v<Type, BFloat16>) {
    const Words bits = __builtin_convertvector(stored, Words) << 16;
    std::memcpy(&to, &bits, sizeof to);
  } else {
    const Words bits = __builtin_convertvector(stored, Words);
    const Words magnitude = bits & 0x7fffU;
    const Words shifted = magnitude << 13;
    Floats scaled;
    std::memcpy(&scaled, &shifted, sizeof scaled);
    scaled *= 0x1p112F;
    Words result;
    std::memcpy(&result, &scaled, sizeof result);
    result |= ((magnitude >= 0x7c00U) & kInfinity) | (bits & 0x8000U) << 16;
    std::memcpy(&to, &result, sizeof to);
  }
}

}  // namespace vramkit::embedding
