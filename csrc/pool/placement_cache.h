// Where a request was placed when the same blocks were live at the same addresses before.
//
// A training repeats its step. What a hole or an extent is worth depends on more than the live
// blocks, though: on who freed what lately, and on which stitched addresses are mapped. So the
// places of the last repetition are remembered by the layout that they were chosen in. A step that
// begins with the layout of the last one then goes through the same layouts, and needs no mapping
// that the last one did not need. Any other layout is new, and nothing is recalled in it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/lazy_array.h"

namespace vramkit {

/// A number that hardly anything else has.
inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value ^ (hash >> 32)) * 0x9e3779b97f4a7c15U;
  return hash ^ (hash >> 29);
}

/// The live blocks and their places, in a number: hardly any other layout has the same.
class LiveSetHash {
 public:
  /// Adds a block, or takes it away again.
  void toggle(uint64_t place, uint64_t size) { value_ ^= mix(mix(0, place), size); }
  /// What a request that comes then is known by.
  uint64_t with_request(uint64_t size, uint64_t stream) const {
    return mix(mix(value_, size), stream);
  }
  bool operator==(const LiveSetHash&) const = default;

 private:
  uint64_t value_ = 0;
};

/// A table that doubles rather than forget: a loop that has lost one place may wander. A short
/// loop's part of it stays in the processor's cache.
class PlacementCache {
 public:
  /// `most`: how many requests are remembered, a power of two of at least 1024.
  explicit PlacementCache(size_t most) : most_sets_(most / kWays), sets_(most_sets_) {}

  /// The place of the request that was known by this number.
  std::optional<uint64_t> find(uint64_t request) const;
  void note(uint64_t request, uint64_t place);

  uint64_t metadata_bytes() const { return used_ ? count_ * sizeof(Set) : 0; }

 private:
  static constexpr size_t kWays = 4;
  static constexpr size_t kFewestSets = 256;

  struct Entry {
    uint64_t request;  // 0 in an entry without one: a place that is checked like any other
    uint64_t place;
  };
  struct alignas(64) Set {
    std::array<Entry, kWays> entries;  // the latest first
  };

  void grow();

  size_t most_sets_;
  size_t count_ = kFewestSets;
  bool used_ = false;
  LazyArray<Set> sets_;  // by the request's last bits
};

inline std::optional<uint64_t> PlacementCache::find(uint64_t request) const {
  for (const Entry& entry : sets_[request & (count_ - 1)].entries) {
    if (entry.request == request) return entry.place;
  }
  return std::nullopt;
}

inline void PlacementCache::note(uint64_t request, uint64_t place) {
  auto& entries = sets_[request & (count_ - 1)].entries;
  size_t at = 0;
  while (at < kWays - 1 && entries[at].request != request) ++at;
  const bool loses = entries[at].request != request && entries[at].request != 0;
  if (loses && count_ < most_sets_) {
    grow();
    return note(request, place);
  }
  for (; at > 0; --at) entries[at] = entries[at - 1];
  entries[0] = {request, place};
  used_ = true;
}

}  // namespace vramkit
