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

// vramkit/units.py writes sizes and counts by the same rules; tests/test_units.py compares the two.

/// In the unit that fits, rounded to a tenth of it: "500 B", "4.0 KiB", "23.5 GiB".
std::string mib(uint64_t bytes);

/// Same, with the bytes where it would look like `other` and is not.
std::string mib_apart(uint64_t bytes, uint64_t other);

/// A positive size that a message advises, as MemoryPool and the command line read it. It is exact,
/// or too large by less than a thousandth: "3GiB", "2049KiB".
std::string advised_size(uint64_t bytes);

/// "1 block", "1,200 blocks".
std::string counted(uint64_t count, const std::string& noun);

}  // namespace vramkit
