#include "pool/range.h"

#include <gtest/gtest.h>

#include <random>
#include <utility>
#include <vector>

#include "support.h"

namespace vramkit {
namespace {

class RangeTest : public testing::Test {
 protected:
  RangeTest() { range_.extend(16 * kMiB); }

  StreamIndex stream(uint64_t handle) { return streams_.index_of(handle); }
  Tag freed_by(uint64_t handle, uint32_t uses = 0) {
    return streams_.tag_freed(stream(handle), uses);
  }
  BlockId carve(uint64_t size) {
    return range_.carve(range_.find(size, stream(0)), size, BlockState::kLive);
  }
  size_t blocks() const {
    size_t count = 0;
    for (BlockId id = range_.first(); id != 0; id = range_[id].next) ++count;
    return count;
  }

  std::string violations_;
  DeviceModel device_{make_backend("null"), violations_};
  Streams streams_{device_};
  Range range_{64 * kMiB, streams_};
};

TEST_F(RangeTest, CarvesTheStartOfAHole) {
  const BlockId id = carve(kMiB);
  EXPECT_EQ(range_[id].offset, 0U);
  EXPECT_EQ(range_[id].size, kMiB);
  EXPECT_EQ(range_.largest_free_extent(), 15 * kMiB);
  EXPECT_EQ(range_.high_water(), kMiB);
}

TEST_F(RangeTest, TakesAllOfAHole) {
  carve(16 * kMiB);
  EXPECT_EQ(blocks(), 1U);
  EXPECT_EQ(range_.find(512, stream(0)), 0U);
}

TEST_F(RangeTest, FindsTheTightestHole) {
  const BlockId large = carve(3 * kMiB);
  carve(kMiB);
  const BlockId small = carve(2 * kMiB);
  carve(kMiB);
  range_.release(large, freed_by(0));
  const uint64_t offset = range_[small].offset;
  range_.release(small, freed_by(0));
  EXPECT_EQ(range_[range_.find(2 * kMiB, stream(0))].offset, offset);
}

TEST_F(RangeTest, FreedNeighboursOfAStreamMerge) {
  const BlockId a = carve(kMiB);
  const BlockId b = carve(kMiB);
  const BlockId c = carve(kMiB);
  range_.release(a, freed_by(0));
  range_.release(c, freed_by(0));
  range_.release(b, freed_by(0));
  EXPECT_EQ(blocks(), 1U);
  EXPECT_EQ(range_.largest_free_extent(), 16 * kMiB);
}

TEST_F(RangeTest, MergedMemoryBelongsToTheStreamThatFreedAPartOfIt) {
  const BlockId a = carve(kMiB);
  const Tag tag = freed_by(0);
  const BlockId whole = range_.release(a, tag);
  EXPECT_EQ(range_[whole].size, 16 * kMiB);
  EXPECT_EQ(range_[whole].stream, tag.stream);
  EXPECT_EQ(range_[whole].epoch, tag.epoch);
}

TEST_F(RangeTest, MemoryOfSeveralStreamsStaysApart) {
  const BlockId a = carve(kMiB);
  const BlockId b = carve(kMiB);
  range_.keep_streams_apart();
  range_.release(a, freed_by(0));
  range_.release(b, freed_by(1));
  EXPECT_EQ(blocks(), 3U);
  EXPECT_EQ(range_.largest_free_extent(), 16 * kMiB) << "an extent counts as one hole";
  EXPECT_EQ(range_[range_.find(kMiB, stream(1))].offset, kMiB);
  EXPECT_EQ(range_[range_.find(2 * kMiB, stream(1))].offset, 2 * kMiB);
}

TEST_F(RangeTest, WhatWasNeverUsedStaysNobodys) {
  const BlockId a = carve(kMiB);
  range_.release(a, freed_by(0));
  range_.keep_streams_apart();
  EXPECT_EQ(blocks(), 2U);
  EXPECT_EQ(range_[range_[range_.first()].next].stream, kAnyStream);
}

TEST_F(RangeTest, TakesAcrossHolesOfSeveralStreams) {
  std::vector<BlockId> pieces;
  for (int i = 0; i < 4; ++i) pieces.push_back(carve(kMiB));
  range_.keep_streams_apart();
  for (uint64_t i = 0; i < 4; ++i) range_.release(pieces[i], freed_by(i));
  const BlockId id = range_.take(kMiB / 2, 3 * kMiB, BlockState::kLive);
  EXPECT_EQ(range_[id].offset, kMiB / 2);
  EXPECT_EQ(range_[id].size, 3 * kMiB);
  EXPECT_EQ(range_[range_[id].prev].stream, stream(0));
  EXPECT_EQ(range_[range_[id].next].stream, stream(3)) << "the rest keeps its own tag";
  EXPECT_EQ(range_[range_[id].next].size, kMiB / 2);
}

TEST_F(RangeTest, TheTagOfATakenMiddleIsKeptOnBothSides) {
  const uint32_t uses = streams_.add_use(0, stream(1));
  const BlockId a = carve(3 * kMiB);
  range_.keep_streams_apart();
  range_.release(a, freed_by(0, uses));
  const BlockId id = range_.take(kMiB, kMiB, BlockState::kLive);
  const Block& before = range_[range_[id].prev];
  const Block& after = range_[range_[id].next];
  EXPECT_EQ(before.uses, uses);
  EXPECT_EQ(after.uses, uses);
  streams_.drain();
  EXPECT_TRUE(streams_.uses_done(after.tag()));
  range_.forget_uses(range_[id].prev);
  range_.forget_uses(range_[id].next);
  EXPECT_EQ(streams_.add_use(0, stream(2)), uses) << "the last holder has let go";
}

TEST_F(RangeTest, HolesWithRecordedUsesMergeWhenTheseAreDone) {
  const BlockId a = carve(kMiB);
  range_.keep_streams_apart();
  const BlockId b = carve(kMiB);
  range_.release(b, freed_by(0));
  const BlockId held = range_.release(a, freed_by(0, streams_.add_use(0, stream(1))));
  EXPECT_EQ(range_.find(kMiB + 512, stream(0)), range_[range_[range_.first()].next].next);
  streams_.drain();
  const BlockId merged = range_.forget_uses(held);
  EXPECT_EQ(range_[merged].size, 2 * kMiB);
}

TEST_F(RangeTest, FindsTheBlockOfEveryOffset) {
  std::vector<BlockId> ids;
  for (uint64_t i = 1; i < 60; ++i) ids.push_back(carve(kGranule + i * 512));
  range_.keep_streams_apart();
  for (size_t i = 0; i < ids.size(); i += 3) range_.release(ids[i], freed_by(i % 4));
  for (BlockId id = range_.first(); id != 0; id = range_[id].next) {
    EXPECT_EQ(range_.block_at(range_[id].offset), id);
    EXPECT_EQ(range_.block_at(range_[id].end() - 1), id);
  }
}

TEST_F(RangeTest, GrowsAtItsEnd) {
  carve(kMiB);
  range_.extend(kMiB);
  EXPECT_EQ(range_.end(), 17 * kMiB);
  EXPECT_EQ(range_.largest_free_extent(), 16 * kMiB);
  range_.keep_streams_apart();
  range_.extend(kMiB);
  EXPECT_EQ(range_.largest_free_extent(), 17 * kMiB);
  EXPECT_TRUE(range_.extents_listed());
}

TEST_F(RangeTest, StretchesEndWhereTheirGranulesAreShared) {
  range_.keep_streams_apart();
  std::mt19937 random(3);
  std::vector<BlockId> live;
  for (int i = 0; i < 4000; ++i) {
    if (random() % 2 == 0) {
      // Odd multiples of 512 bytes: free and live memory meets within granules.
      const uint64_t size = kGranule + 512 * (random() % 64);
      const BlockId hole = range_.find_any(size, [](BlockId) { return true; });
      if (hole != 0) live.push_back(range_.carve(hole, size, BlockState::kLive));
    } else if (!live.empty()) {
      std::swap(live[random() % live.size()], live.back());
      range_.release(live.back(), freed_by(random() % 3));
      live.pop_back();
    }
    ASSERT_TRUE(range_.extents_listed()) << "after " << i;
  }
}

TEST_F(RangeTest, VisitsStretchesOfFreeMemory) {
  const BlockId a = carve(kMiB);
  carve(kMiB);
  range_.release(a, freed_by(0));
  std::vector<uint64_t> seen;
  range_.each_free_extent([&](uint64_t offset, uint64_t size) {
    seen.push_back(offset);
    seen.push_back(size);
    return true;
  });
  EXPECT_EQ(seen, (std::vector<uint64_t>{0, kMiB, 2 * kMiB, 14 * kMiB}));
}

}  // namespace
}  // namespace vramkit
