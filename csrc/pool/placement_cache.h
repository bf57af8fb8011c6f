// Where a request was placed while the same blocks were live at the same addresses.
//
// A training repeats its step. Which place is best depends on more than the live blocks, though: on
// who freed what recently, and on which stitched addresses are mapped. The cache therefore
// remembers each place by the hash of the live set in which it was chosen. A step that begins with
// the same live blocks as the previous one then goes through the same sets, and needs no mapping
// that the previous one did not need. Any other set is new, and has no entry.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/lazy_array.h"

namespace vramkit {

/// The placers call it under the pool's lock, and check an entry like any other place: it may be
/// outdated, or that of another set with the same hash. The table doubles before it drops any
/// entry, because a loop that has lost one place may not reach a steady state. A short loop's part
/// of it stays in the processor's cache. Memory comes from the system at first use; nothing throws.
class PlacementCache {
 public:
  /// `most`: how many requests are remembered, a power of two of at least 1024.
  explicit PlacementCache(size_t most) : most_sets_(most / kWays), sets_(most_sets_) {}

  /// The place of the request with this key (`LiveSetHash::request_key`).
  std::optional<uint64_t> find(uint64_t key) const;
  void remember(uint64_t key, uint64_t place);

  uint64_t metadata_bytes() const { return used_ ? count_ * sizeof(Set) : 0; }

 private:
  static constexpr size_t kWays = 4;
  static constexpr size_t kFewestSets = 256;

  struct Entry {
    uint64_t key;  // 0 in an empty entry, which is harmless: a place is checked
    uint64_t place;
  };
  struct alignas(64) Set {
    std::array<Entry, kWays> entries;  // the latest first
  };

  void grow();

  size_t most_sets_;
  size_t count_ = kFewestSets;
  bool used_ = false;
  LazyArray<Set> sets_;  // by the last bits of the key
};

inline std::optional<uint64_t> PlacementCache::find(uint64_t key) const {
  for (const Entry& entry : sets_[key & (count_ - 1)].entries) {
    if (entry.key == key) return entry.place;
  }
  return std::nullopt;
}

inline void PlacementCache::remember(uint64_t key, uint64_t place) {
  auto& entries = sets_[key & (count_ - 1)].entries;
  size_t at = 0;
  while (at < kWays - 1 && entries[at].key != key) ++at;
  const bool loses = entries[at].key != key && entries[at].key != 0;
  if (loses && count_ < most_sets_) {
    grow();
    return remember(key, place);
  }
  for (; at > 0; --at) entries[at] = entries[at - 1];
  entries[0] = {key, place};
  used_ = true;
}

}  // namespace vramkit
