#include "ops/embedding/device/index.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace vramkit::embedding::device {
namespace {

/// The number whose product with an odd one is 1.
constexpr uint64_t inverse_of(uint64_t odd) {
  uint64_t inverse = odd;  // right in three bits; each round doubles them
  for (int round = 0; round < 5; ++round) inverse *= 2 - odd * inverse;
  return inverse;
}

constexpr uint64_t without_shift(uint64_t mixed, int shift) {
  uint64_t x = mixed;
  for (int done = shift; done < 64; done += shift) x = mixed ^ x >> shift;
  return x;
}

/// The key with a hash: the inverse of mix().
int64_t key_of(uint64_t hash) {
  uint64_t x = without_shift(hash, 31) * inverse_of(0x94d049bb133111ebULL);
  x = without_shift(x, 27) * inverse_of(0xbf58476d1ce4e5b9ULL);
  return static_cast<int64_t>(without_shift(x, 30) - 0x9e3779b97f4a7c15ULL);
}

/// A hash table for so many keys, and the Metas that it compares them with.
class Table {
 public:
  static constexpr uint32_t kRows = 32;

  Table() : entries_(64, {kMissing, kMissing}) { page_.metas = metas_.data(); }

  IndexView index() { return {entries_.data(), nullptr, entries_.size()}; }
  RowsView rows() const { return {{}, 5, kRows - 1, &page_, kMissing, false}; }
  void insert(int64_t key, uint32_t slot) {
    metas_[slot].key = key;
    index().insert(key, slot);
  }
  uint32_t find(int64_t key) { return index().find(key, rows()); }
  int64_t& key(uint32_t slot) { return metas_[slot].key; }

 private:
  std::vector<Entry> entries_;
  std::array<Meta, kRows> metas_{};
  Page page_{};
};

/// Keys with one tag and one first entry.
std::vector<int64_t> alike(uint32_t count) {
  std::vector<int64_t> keys;
  for (uint64_t i = 0; i < count; ++i) keys.push_back(key_of(i << 32 | 0x1234567U));
  return keys;
}

TEST(DeviceIndex, TellsKeysWithOneTagApart) {
  const std::vector<int64_t> keys = alike(20);
  for (size_t i = 0; i < keys.size(); ++i) {
    ASSERT_EQ(mix(static_cast<uint64_t>(keys[i])), i << 32 | 0x1234567U);
  }
  Table table;
  for (uint32_t slot = 0; slot < 19; ++slot) table.insert(keys[slot], slot);
  for (uint32_t slot = 0; slot < 19; ++slot) ASSERT_EQ(table.find(keys[slot]), slot);
  EXPECT_EQ(table.find(keys[19]), kMissing);
}

TEST(DeviceIndex, ErasesOneOfKeysWithOneTag) {
  const std::vector<int64_t> keys = alike(10);
  Table table;
  for (uint32_t slot = 0; slot < 10; ++slot) table.insert(keys[slot], slot);
  table.index().erase(keys[4], 4);
  EXPECT_EQ(table.find(keys[4]), kMissing);
  for (uint32_t slot = 5; slot < 10; ++slot) ASSERT_EQ(table.find(keys[slot]), slot);
  table.insert(keys[4], 20);
  EXPECT_EQ(table.find(keys[4]), 20U);
}

TEST(DeviceIndex, SwapsTheSlotsOfKeysWithOneTag) {
  const std::vector<int64_t> keys = alike(10);
  Table table;
  for (uint32_t slot = 0; slot < 10; ++slot) table.insert(keys[slot], slot);
  for (const auto& [first, second] : {std::pair{2U, 7U}, {7U, 2U}, {2U, 3U}}) {
    std::swap(table.key(first), table.key(second));
    table.index().swap(table.key(second), first, table.key(first), second);
    for (const int64_t key : keys) ASSERT_EQ(table.key(table.find(key)), key);
  }
  EXPECT_EQ(table.find(keys[2]), 3U);
}

}  // namespace
}  // namespace vramkit::embedding::device
