// A set of indices that finds the nearest member below or above a given index in a few steps.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/lazy_array.h"

namespace vramkit {

/// Each level has one bit for each non-empty word of the level below.
class StartMap {
 public:
  static constexpr uint64_t kNone = ~uint64_t{0};

  explicit StartMap(uint64_t count) {
    do {
      count = ceil_div(count, 64);
      levels_.push_back(std::make_unique<LazyArray<uint64_t>>(count));
    } while (count > 1);
  }

  void insert(uint64_t index) {
    for (auto& level : levels_) {
      uint64_t& word = (*level)[index >> 6];
      const bool was_empty = word == 0;
      word |= uint64_t{1} << (index & 63);
      if (!was_empty) return;
      index >>= 6;
    }
  }

  void erase(uint64_t index) {
    for (auto& level : levels_) {
      uint64_t& word = (*level)[index >> 6];
      word &= ~(uint64_t{1} << (index & 63));
      if (word != 0) return;
      index >>= 6;
    }
  }

  /// The largest member that is at most `index`, or kNone.
  uint64_t at_or_below(uint64_t index) const {
    for (size_t level = 0; level < levels_.size(); ++level) {
      const uint64_t mask = ~uint64_t{0} >> (63 - (index & 63));
      const uint64_t word = (*levels_[level])[index >> 6] & mask;
      if (word != 0) return last_under(level, (index & ~uint64_t{63}) | top_bit(word));
      if (index < 64) return kNone;
      index = (index >> 6) - 1;
    }
    return kNone;
  }

  /// The smallest member that is at least `index`, or kNone.
  uint64_t at_or_above(uint64_t index) const {
    for (size_t level = 0; level < levels_.size(); ++level) {
      // May be one behind the last, which a LazyArray has too.
      const uint64_t word = (*levels_[level])[index >> 6] & (~uint64_t{0} << (index & 63));
      if (word != 0) return first_under(level, (index & ~uint64_t{63}) | low_bit(word));
      index = (index >> 6) + 1;
    }
    return kNone;
  }

 private:
  static uint64_t low_bit(uint64_t word) { return static_cast<uint64_t>(std::countr_zero(word)); }
  static uint64_t top_bit(uint64_t word) {
    return 63 - static_cast<uint64_t>(std::countl_zero(word));
  }

  uint64_t last_under(size_t level, uint64_t index) const {
    while (level-- > 0) index = index << 6 | top_bit((*levels_[level])[index]);
    return index;
  }

  uint64_t first_under(size_t level, uint64_t index) const {
    while (level-- > 0) index = index << 6 | low_bit((*levels_[level])[index]);
    return index;
  }

  std::vector<std::unique_ptr<LazyArray<uint64_t>>> levels_;
};

}  // namespace vramkit
