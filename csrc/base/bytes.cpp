#include "base/bytes.h"

#include <algorithm>
#include <array>

namespace vramkit {
namespace {

constexpr std::array kUnits = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
constexpr size_t kLargestUnit = kUnits.size() - 1;

/// The largest unit that is not larger than the size.
size_t unit_of(uint64_t bytes) {
  const auto bits = static_cast<size_t>(std::bit_width(bytes));
  return bits == 0 ? 0 : std::min((bits - 1) / 10, kLargestUnit);
}

uint64_t unit_bytes(size_t unit) { return uint64_t{1} << (10 * unit); }

/// Rounded half up. Nothing overflows: the rest is below 2**60.
uint64_t tenths(uint64_t bytes, size_t unit) {
  const uint64_t one = unit_bytes(unit);
  return bytes / one * 10 + (bytes % one * 10 + one / 2) / one;
}

std::string grouped(uint64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (size_t at = 0; at < digits.size(); ++at) {
    if (at > 0 && (digits.size() - at) % 3 == 0) text += ',';
    text += digits[at];
  }
  return text;
}

}  // namespace

std::string mib(uint64_t bytes) {
  size_t unit = unit_of(bytes);
  if (unit == 0) return std::to_string(bytes) + " B";
  uint64_t value = tenths(bytes, unit);
  if (value == 10 * 1024 && unit < kLargestUnit) {
    value = 10;
    ++unit;
  }
  return std::to_string(value / 10) + "." + std::to_string(value % 10) + " " + kUnits[unit];
}

std::string mib_apart(uint64_t bytes, uint64_t other) {
  const std::string text = mib(bytes);
  if (bytes == other || text != mib(other)) return text;
  return text + " (" + counted(bytes, "byte") + ")";
}

std::string advised_size(uint64_t bytes) {
  size_t unit = unit_of(bytes);
  unit = unit > 0 ? unit - 1 : 0;
  const uint64_t grain = unit_bytes(unit);
  uint64_t count = bytes / grain + (bytes % grain != 0 ? 1 : 0);
  while (count > 0 && count % 1024 == 0 && unit < kLargestUnit) {
    count /= 1024;
    ++unit;
  }
  return std::to_string(count) + kUnits[unit];
}

std::string counted(uint64_t count, const std::string& noun) {
  return grouped(count) + " " + noun + (count == 1 ? "" : "s");
}

}  // namespace vramkit
