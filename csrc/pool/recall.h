// Where a request was placed when the same blocks were live at the same addresses before.
//
// A training repeats its step. What a hole or a stretch is worth depends on more than the live
// blocks, though: on who freed what lately, and on which stitched addresses are mapped. So the
// places of the last repetition are remembered by the layout that they were chosen in. A step that
// begins with the layout of the last one then goes through the same layouts, and needs no mapping
// that the last one did not need. Any other layout is new, and nothing is recalled in it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/lazy_array.h"

namespace vramkit {

/// The live blocks and their places, in a number that hardly any other layout has.
class LayoutMark {
 public:
  /// Adds a block, or takes it away again.
  void toggle(uint64_t place, uint64_t size) { value_ ^= mix(mix(0, place), size); }
  /// What a request in this layout is known by.
  uint64_t with_request(uint64_t size, uint64_t stream) const {
    return mix(mix(value_, size), stream);
  }

 private:
  static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value ^ (hash >> 32)) * 0x9e3779b97f4a7c15U;
    return hash ^ (hash >> 29);
  }

  uint64_t value_ = 0;
};

/// A table that doubles while new requests come, so that a short loop's part of it stays in the
/// processor's cache.
class Recall {
 public:
  /// `most`: how many requests are remembered, a power of two of at least 1024.
  explicit Recall(size_t most) : most_(most / kWays), sets_(most_) {}

  /// The place of the request that was known by this number. A few bits of it are not kept: what
  /// is returned must be checked like any other place.
  std::optional<uint64_t> find(uint64_t request) const;
  /// Places are multiples of 512, or ~0.
  void note(uint64_t request, uint64_t place);

  uint64_t metadata_bytes() const { return noted_ > 0 ? count_ * sizeof(Set) : 0; }

 private:
  static constexpr size_t kWays = 8;
  static constexpr int kFewestBits = 7;  // of a request, that choose a set of the smallest table
  static constexpr int kPlaceBits = 40;
  static constexpr uint64_t kPlaceMask = (uint64_t{1} << kPlaceBits) - 1;

  /// The 24 bits of a request that follow the fewest bits, above the place in units of 512 bytes.
  using Entry = uint64_t;
  struct alignas(64) Set {
    std::array<Entry, kWays> entries;  // the latest first
  };

  static uint64_t tag_of(uint64_t request) { return request >> kFewestBits << kPlaceBits; }
  static bool has_tag(Entry entry, uint64_t tag) { return ((entry ^ tag) >> kPlaceBits) == 0; }
  void grow();

  size_t most_;
  size_t count_ = size_t{1} << kFewestBits;
  size_t noted_ = 0;     // requests that were new
  LazyArray<Set> sets_;  // by the request's last bits
};

inline std::optional<uint64_t> Recall::find(uint64_t request) const {
  const uint64_t tag = tag_of(request);
  for (const Entry entry : sets_[request & (count_ - 1)].entries) {
    if (!has_tag(entry, tag)) continue;
    const uint64_t place = entry & kPlaceMask;
    return place == kPlaceMask ? ~uint64_t{0} : place * kAlignment;
  }
  return std::nullopt;
}

inline void Recall::note(uint64_t request, uint64_t place) {
  const uint64_t tag = tag_of(request);
  auto& entries = sets_[request & (count_ - 1)].entries;
  size_t at = 0;
  while (at < kWays - 1 && !has_tag(entries[at], tag)) ++at;
  const bool is_new = !has_tag(entries[at], tag);
  for (; at > 0; --at) entries[at] = entries[at - 1];
  entries[0] = tag | (place / kAlignment & kPlaceMask);
  if (is_new && ++noted_ > count_ * kWays / 2 && count_ < most_) grow();
}

/// Doubles the table. Sets behind its end are empty.
inline void Recall::grow() {
  for (size_t i = 0; i < count_; ++i) {
    auto& low = sets_[i].entries;
    auto& high = sets_[i + count_].entries;
    const auto goes = [this](Entry entry) {
      return (entry >> kPlaceBits << kFewestBits & count_) != 0;
    };
    std::copy_if(low.begin(), low.end(), high.begin(), goes);
    std::fill(std::remove_if(low.begin(), low.end(), goes), low.end(), Entry{0});
  }
  count_ *= 2;
}

}  // namespace vramkit
