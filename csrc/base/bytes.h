// Sizes in bytes: literals, rounding, text for humans.
#pragma once

#include <bit>
#include <cstdint>
#include <string>

namespace vramkit {

inline constexpr uint64_t kKiB = uint64_t{1} << 10;
inline constexpr uint64_t kMiB = uint64_t{1} << 20;
inline constexpr uint64_t kGiB = uint64_t{1} << 30;

/// Every block starts and ends at a multiple of this.
inline constexpr uint64_t kAlignment = 512;

/// `alignment` is a power of two; `value + alignment` must not overflow.
constexpr uint64_t align_down(uint64_t value, uint64_t alignment) {
  return value & ~(alignment - 1);
}
constexpr uint64_t align_up(uint64_t value, uint64_t alignment) {
  return align_down(value + alignment - 1, alignment);
}

constexpr uint64_t ceil_div(uint64_t value, uint64_t divisor) {
  return (value + divisor - 1) / divisor;
}

/// "12.00 MiB".
std::string mib(uint64_t bytes);

}  // namespace vramkit
