// Random numbers that are functions of a counter, so that they need no state, do not depend on the
// number of threads, and are the same on every device.
#pragma once

#include <cstdint>

#include "ops/on_both.h"

namespace vramkit::embedding {

/// A bijection whose output bits look independent of the input (the finalizer of SplitMix64,
/// Steele, Lea and Flood 2014).
VRAMKIT_ON_BOTH constexpr uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
  return x ^ x >> 31;
}

VRAMKIT_ON_BOTH constexpr uint64_t mix(uint64_t a, uint64_t b) { return mix(a ^ mix(b)); }

/// Elements of a row whose random numbers are parts of one draw.
inline constexpr uint32_t kPerDraw = 4;

/// The part of a draw for its i-th element: sixteen random bits, above sixteen zeros.
VRAMKIT_ON_BOTH constexpr uint32_t part_of_draw(uint64_t drawn, uint32_t i) {
  return static_cast<uint32_t>(drawn >> 16 * i) << 16;
}

VRAMKIT_ON_BOTH constexpr int64_t count_ones(uint64_t x) {
  x -= x >> 1 & 0x5555555555555555ULL;
  x = (x & 0x3333333333333333ULL) + (x >> 2 & 0x3333333333333333ULL);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
  return static_cast<int64_t>(x * 0x0101010101010101ULL >> 56);
}

/// A number from nearly the standard normal distribution: the count of 64 fair bits, smoothed by
/// the difference of two uniform numbers. Integer arithmetic and one rounding, so that every device
/// computes the same bits.
VRAMKIT_ON_BOTH constexpr float normal(uint64_t bits) {
  constexpr float kDeviation = 4.0207794F;  // sqrt(64 / 4 + 2 / 12)
  const uint64_t smooth = mix(bits);
  int64_t value = (count_ones(bits) - 32) * (int64_t{1} << 32);
  value += static_cast<int64_t>(smooth & 0xffffffffULL) - static_cast<int64_t>(smooth >> 32);
  return static_cast<float>(value) * (0x1p-32F / kDeviation);
}

}  // namespace vramkit::embedding
