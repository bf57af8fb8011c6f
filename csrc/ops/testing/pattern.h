// The pattern that fill_pattern_ writes and count_mismatches expects, for CPU and CUDA alike.
#pragma once

#include <cstdint>

#include "ops/on_both.h"

namespace vramkit::ops {

inline constexpr uint64_t kWordBytes = 4;

/// The 32-bit word at position `index` (counted in words): every bit depends on every bit of the
/// position and of the seed, so that shifted, swapped and stale data are seen.
VRAMKIT_ON_BOTH inline uint32_t pattern_word(uint64_t index, uint64_t seed) {
  uint64_t x = index + seed * 0x9e3779b97f4a7c15ULL;
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return static_cast<uint32_t>(x >> 32);
}

}  // namespace vramkit::ops
