// From keys to slots: a hash table of buckets of one cache line, or, where that is smaller, the
// slot of each id of a fixed table. The hash table leaves keys to the rows: an entry takes five
// bytes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "ops/embedding/memory.h"
#include "ops/embedding/random.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding {

/// Twelve entries. `passed` counts the entries that found this bucket full and went on to the next
/// ones (as in Facebook's F14), so that erasing leaves no tombstones.
struct alignas(64) Bucket {
  uint8_t tags[12];  // 0: no entry
  uint32_t passed;
  uint32_t slots[12];
};
static_assert(sizeof(Bucket) == 64);

/// Not thread-safe; any number of threads may find at once. `KeyOf` returns the key of a slot.
class HashIndex {
 public:
  static constexpr uint32_t kEntries = 12;

  /// Keys are 0 to `num_keys` - 1, or any where it is negative.
  explicit HashIndex(int64_t num_keys) : num_keys_(num_keys) {}

  /// Bytes of an index that has room for so many keys.
  uint64_t bytes_for(uint64_t keys) const {
    return is_direct(keys) ? direct_bytes() : buckets_for(keys) * sizeof(Bucket);
  }
  uint64_t bytes() const { return direct_ != nullptr ? direct_bytes() : buckets_ * sizeof(Bucket); }
  uint64_t room() const {
    return direct_ != nullptr ? static_cast<uint64_t>(num_keys_) : buckets_ * kEntries / 8 * 7;
  }

  /// The slot of each key, or null where there is a hash table.
  const uint32_t* direct() const { return direct_; }

  static uint64_t hash(int64_t key) { return mix(static_cast<uint64_t>(key)); }

  void prefetch(uint64_t hash) const {
    if (buckets_ != 0) __builtin_prefetch(&table_[home(hash)]);
  }
  /// The first slot whose tag fits, which is most often the right one; for prefetching its row.
  uint32_t guess(uint64_t hash) const {
    if (buckets_ == 0) return kMissing;
    const Bucket& bucket = table_[home(hash)];
    const uint32_t fits = matches(bucket, tag(hash));
    return fits == 0 ? kMissing : bucket.slots[__builtin_ctz(fits)];
  }

  template <class KeyOf>
  uint32_t find(int64_t key, uint64_t hash, const KeyOf& key_of) const {
    if (direct_ != nullptr) return direct_[key];
    const Place place = locate(key, hash, key_of);
    return place.bucket == nullptr ? kMissing : place.bucket->slots[place.entry];
  }

  /// The key must not be in the index, which must have room.
  void insert(int64_t key, uint32_t slot) {
    if (direct_ != nullptr) {
      direct_[key] = slot;
      return;
    }
    const uint64_t hash = HashIndex::hash(key);
    for (uint64_t at = home(hash);; at = next(at)) {
      Bucket& bucket = table_[at];
      const uint32_t free = matches(bucket, 0);
      if (free != 0) {
        const int entry = __builtin_ctz(free);
        bucket.tags[entry] = tag(hash);
        bucket.slots[entry] = slot;
        return;
      }
      ++bucket.passed;
    }
  }

  template <class KeyOf>
  void erase(int64_t key, const KeyOf& key_of) {
    if (direct_ != nullptr) {
      direct_[key] = kMissing;
      return;
    }
    const uint64_t hash = HashIndex::hash(key);
    const Place place = locate(key, hash, key_of);
    place.bucket->tags[place.entry] = 0;
    for (uint64_t at = home(hash); &table_[at] != place.bucket; at = next(at)) --table_[at].passed;
  }

  /// Makes room for `keys` keys; `slots` of them, from 0, are in use and are entered again.
  template <class KeyOf>
  void rebuild(uint64_t keys, uint32_t slots, const Allocate& allocate, const KeyOf& key_of) {
    const uint64_t bytes = bytes_for(keys);
    std::unique_ptr<Memory> memory = allocate(bytes);
    const bool direct = is_direct(keys);
    std::memset(memory->data(), direct ? 0xff : 0, bytes);
    memory_ = std::move(memory);
    direct_ = direct ? reinterpret_cast<uint32_t*>(memory_->data()) : nullptr;
    table_ = direct ? nullptr : reinterpret_cast<Bucket*>(memory_->data());
    buckets_ = direct ? 0 : bytes / sizeof(Bucket);
    for (uint32_t slot = 0; slot < slots; ++slot) insert(key_of(slot), slot);
  }

 private:
  struct Place {
    Bucket* bucket;
    int entry;
  };

  uint64_t direct_bytes() const { return static_cast<uint64_t>(num_keys_) * sizeof(uint32_t); }
  bool is_direct(uint64_t keys) const {
    return num_keys_ >= 0 && direct_bytes() <= buckets_for(keys) * sizeof(Bucket);
  }
  static uint64_t buckets_for(uint64_t keys) { return (keys * 8 / 7 + kEntries) / kEntries + 1; }
  static uint8_t tag(uint64_t hash) { return static_cast<uint8_t>(hash | 0x80U); }
  uint64_t home(uint64_t hash) const { return (hash >> 32) * buckets_ >> 32; }
  uint64_t next(uint64_t at) const { return at + 1 == buckets_ ? 0 : at + 1; }

  /// A bit for each entry whose tag is `tag`.
  static uint32_t matches(const Bucket& bucket, uint8_t tag) {
#if defined(__SSE2__)
    const __m128i tags = _mm_load_si128(reinterpret_cast<const __m128i*>(bucket.tags));
    const __m128i wanted = _mm_set1_epi8(static_cast<char>(tag));
    return static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(tags, wanted))) & 0xfffU;
#else
    uint32_t found = 0;
    for (uint32_t i = 0; i < kEntries; ++i) found |= uint32_t{bucket.tags[i] == tag} << i;
    return found;
#endif
  }

  template <class KeyOf>
  Place locate(int64_t key, uint64_t hash, const KeyOf& key_of) const {
    if (buckets_ == 0) return {nullptr, 0};
    for (uint64_t at = home(hash);; at = next(at)) {
      Bucket& bucket = table_[at];
      for (uint32_t fits = matches(bucket, tag(hash)); fits != 0; fits &= fits - 1) {
        const int entry = __builtin_ctz(fits);
        if (key_of(bucket.slots[entry]) == key) return {&bucket, entry};
      }
      if (bucket.passed == 0) return {nullptr, 0};
    }
  }

  int64_t num_keys_;
  std::unique_ptr<Memory> memory_;
  uint32_t* direct_ = nullptr;  // instead of the table, if not null
  Bucket* table_ = nullptr;
  uint64_t buckets_ = 0;
};

}  // namespace vramkit::embedding
