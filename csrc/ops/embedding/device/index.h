// From keys to slots in device memory. Finding, inserting and erasing are calls of many threads at
// once, but each kind has a kernel of its own.
#pragma once

#include <cstdint>

#include "ops/embedding/device/lanes.h"
#include "ops/embedding/device/rows.h"
#include "ops/embedding/random.h"
#include "ops/embedding/table_config.h"
#include "ops/on_both.h"

namespace vramkit::embedding::device {

/// A slot that no table reaches: an entry whose key was erased.
inline constexpr uint32_t kErased = kMissing - 1;

/// Half of the key's hash, and its slot. The key itself is in the slot's Meta.
struct alignas(8) Entry {
  uint32_t tag;
  uint32_t slot;
};

/// A hash table with linear probing, or, where ids are few enough that it is smaller, the slot of
/// each id. Owns nothing; all bytes of an empty index are 0xff.
struct IndexView {
  Entry* entries;
  uint32_t* direct;  // instead of entries, if not null
  uint64_t size;     // of whichever there is; 0: no key is found

  VRAMKIT_ON_BOTH uint32_t find(int64_t key, const RowsView& rows) const {
    if (direct != nullptr) return static_cast<uint64_t>(key) < size ? direct[key] : kMissing;
    if (size == 0) return kMissing;
    const uint64_t hash = hash_of(key);
    for (uint64_t at = home(hash);; at = next(at)) {
      const Entry entry = read(at);
      if (entry.slot == kMissing) return kMissing;
      if (entry.tag != tag_of(hash) || entry.slot == kErased) continue;
      if (rows.meta(entry.slot).key == key) return entry.slot;
    }
  }

  /// The key must not be in the index, nor be inserted by another thread.
  VRAMKIT_ON_BOTH void insert(int64_t key, uint32_t slot) const {
    if (direct != nullptr) {
      direct[key] = slot;
      return;
    }
    const uint64_t hash = hash_of(key);
    for (uint64_t at = home(hash);; at = next(at)) {
      const uint32_t old = peek(&entries[at].slot);
      if (old < kErased || compare_exchange(&entries[at].slot, old, slot) != old) continue;
      entries[at].tag = tag_of(hash);
      return;
    }
  }

  /// The key must be in the index, with this slot.
  VRAMKIT_ON_BOTH void erase(int64_t key, uint32_t slot) const {
    if (direct != nullptr) {
      direct[key] = kMissing;
    } else {
      exchange(&entry_of(key, slot)->slot, kErased);
    }
  }

  /// Two keys that are in the index, with these slots, get each other's. Other threads may do the
  /// same with other slots.
  VRAMKIT_ON_BOTH void swap(int64_t first_key, uint32_t first, int64_t second_key,
                            uint32_t second) const {
    if (direct != nullptr) {
      direct[first_key] = second;
      direct[second_key] = first;
      return;
    }
    // Both are found first: with equal tags they could be taken for each other in between.
    Entry* const of_first = entry_of(first_key, first);
    Entry* const of_second = entry_of(second_key, second);
    exchange(&of_first->slot, second);
    exchange(&of_second->slot, first);
  }

 private:
  VRAMKIT_ON_BOTH Entry* entry_of(int64_t key, uint32_t slot) const {
    const uint64_t hash = hash_of(key);
    uint64_t at = home(hash);
    while (peek(&entries[at].slot) != slot || entries[at].tag != tag_of(hash)) at = next(at);
    return entries + at;
  }
  VRAMKIT_ON_BOTH Entry read(uint64_t at) const {
#if defined(__CUDA_ARCH__)
    const uint2 bits = *reinterpret_cast<const uint2*>(entries + at);
    return {bits.x, bits.y};
#else
    return entries[at];
#endif
  }
  VRAMKIT_ON_BOTH static uint64_t hash_of(int64_t key) { return mix(static_cast<uint64_t>(key)); }
  VRAMKIT_ON_BOTH static uint32_t tag_of(uint64_t hash) { return static_cast<uint32_t>(hash); }
  VRAMKIT_ON_BOTH uint64_t home(uint64_t hash) const { return (hash >> 32) * size >> 32; }
  VRAMKIT_ON_BOTH uint64_t next(uint64_t at) const { return at + 1 == size ? 0 : at + 1; }
};

}  // namespace vramkit::embedding::device
