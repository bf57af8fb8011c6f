#include "pool/bins.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "base/bytes.h"

namespace vramkit {
namespace {

class BinsTest : public testing::Test {
 protected:
  BlockId add(uint64_t offset, uint64_t size) {
    const BlockId id = blocks_.take();
    blocks_[id] = Block{};
    blocks_[id].offset = offset;
    blocks_[id].size = size;
    bins_.insert(id);
    return id;
  }

  Blocks blocks_{1 << 16};
  Bins bins_{blocks_};
};

TEST_F(BinsTest, FindsNothingWhenEmpty) {
  EXPECT_EQ(bins_.find(512), 0U);
  EXPECT_EQ(bins_.find_aligned(512, 512), 0U);
  EXPECT_EQ(bins_.largest(), 0U);
}

TEST_F(BinsTest, TakesTheLowestAddressAmongEquals) {
  add(8 * kMiB, kMiB);
  const BlockId low = add(2 * kMiB, kMiB);
  add(5 * kMiB, kMiB);
  EXPECT_EQ(bins_.find(kMiB - 511), low);
}

TEST_F(BinsTest, KeepsSizesOfEveryPowerApart) {
  std::map<uint64_t, BlockId> ids;
  for (int power = 9; power < 50; ++power) {
    const uint64_t size = uint64_t{1} << power;
    ids[size] = add(0, size);
  }
  for (const auto& [size, id] : ids) EXPECT_EQ(bins_.find(size), id);
  EXPECT_EQ(bins_.largest(), uint64_t{1} << 49);
}

TEST_F(BinsTest, FindsAHoleForAnAlignedBlock) {
  add(512, kMiB);  // large enough, but cut by the alignment
  const BlockId fits = add(64 * kMiB + 512, 2 * kMiB);
  EXPECT_EQ(bins_.find_aligned(kMiB, kMiB), fits);
  EXPECT_EQ(bins_.find_aligned(2 * kMiB, kMiB), 0U);
}

TEST_F(BinsTest, GivesAFittingBlockWhereverThereIsOne) {
  std::mt19937_64 random(11);
  std::set<std::pair<uint64_t, BlockId>> held;
  for (uint64_t i = 0; i < 20000; ++i) {
    if (held.size() < 300 && random() % 2 == 0) {
      const uint64_t size = kAlignment * (1 + random() % (uint64_t{1} << random() % 20));
      held.emplace(size, add(i * kGiB, size));
    } else if (!held.empty()) {
      const auto chosen = std::next(held.begin(), static_cast<ptrdiff_t>(random() % held.size()));
      bins_.remove(chosen->second);
      blocks_.give_back(chosen->second);
      held.erase(chosen);
    }
    const uint64_t wanted = kAlignment * (1 + random() % (uint64_t{1} << random() % 21));
    const auto best = held.lower_bound({wanted, 0});
    const BlockId found = bins_.find(wanted);
    ASSERT_EQ(found != 0, best != held.end());
    // Bins are 1/64 wide, and where many share one the first few are looked at.
    if (found != 0) {
      ASSERT_GE(blocks_[found].size, wanted);
      ASSERT_LE(blocks_[found].size, best->first + best->first / 32);
    }
    ASSERT_EQ(bins_.largest(), held.empty() ? 0 : held.rbegin()->first);
  }
}

}  // namespace
}  // namespace vramkit
