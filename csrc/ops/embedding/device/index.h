// From keys to slots in device memory. Finding, inserting and erasing are calls of many threads at
// once, but each kind has a kernel of its own.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/embedding/device/lanes.h"
#include "ops/embedding/random.h"
#include "ops/embedding/table_config.h"
#include "ops/on_both.h"

namespace vramkit::embedding::device {

/// A slot that no table reaches: an entry whose key was erased.
inline constexpr uint32_t kErased = kMissing - 1;

/// Sixteen bytes, so that a lookup fetches key and slot at once.
struct alignas(16) Entry {
  int64_t key;
  uint32_t slot;
  uint32_t unused;
};

/// A hash table with linear probing, or, where ids are few enough that it is smaller, the slot of
/// each id. Owns nothing; all bytes of an empty index are 0xff.
struct IndexView {
  Entry* entries;
  uint32_t* direct;  // instead of entries, if not null
  uint64_t size;     // of whichever there is; 0: no key is found

  VRAMKIT_ON_BOTH uint32_t find(int64_t key) const {
    if (direct != nullptr) return static_cast<uint64_t>(key) < size ? direct[key] : kMissing;
    if (size == 0) return kMissing;
    for (uint64_t at = home(key);; at = next(at)) {
      const Entry entry = read(at);
      if (entry.slot == kMissing) return kMissing;
      if (entry.key == key && entry.slot != kErased) return entry.slot;
    }
  }

  /// The key must not be in the index, nor be inserted by another thread.
  VRAMKIT_ON_BOTH void insert(int64_t key, uint32_t slot) const {
    if (direct != nullptr) {
      direct[key] = slot;
      return;
    }
    for (uint64_t at = home(key);; at = next(at)) {
      const uint32_t old = peek(&entries[at].slot);
      if (old < kErased || compare_exchange(&entries[at].slot, old, slot) != old) continue;
      entries[at].key = key;
      return;
    }
  }

  /// The key must be in the index.
  VRAMKIT_ON_BOTH void erase(int64_t key) const { replace(key, kMissing, kErased); }

  /// Gives another slot to a key that is in the index.
  VRAMKIT_ON_BOTH void move(int64_t key, uint32_t slot) const { replace(key, slot, slot); }

 private:
  VRAMKIT_ON_BOTH void replace(int64_t key, uint32_t in_direct, uint32_t in_entry) const {
    if (direct != nullptr) {
      direct[key] = in_direct;
      return;
    }
    for (uint64_t at = home(key);; at = next(at)) {
      if (entries[at].key != key || peek(&entries[at].slot) >= kErased) continue;
      exchange(&entries[at].slot, in_entry);
      return;
    }
  }
  VRAMKIT_ON_BOTH Entry read(uint64_t at) const {
#if defined(__CUDA_ARCH__)
    const uint4 bits = *reinterpret_cast<const uint4*>(entries + at);
    Entry entry;
    memcpy(&entry, &bits, sizeof entry);
    return entry;
#else
    return entries[at];
#endif
  }
  VRAMKIT_ON_BOTH uint64_t home(int64_t key) const {
    return (mix(static_cast<uint64_t>(key)) >> 32) * size >> 32;
  }
  VRAMKIT_ON_BOTH uint64_t next(uint64_t at) const { return at + 1 == size ? 0 : at + 1; }
};

}  // namespace vramkit::embedding::device
