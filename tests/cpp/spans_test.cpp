#include "pool/spans.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "support.h"

namespace vramkit {
namespace {

TEST(Spans, AlignEveryBlockAndWasteLittle) {
  JudgedEngine pool(256);
  for (uint64_t size = 1; size <= kMaxSmall; size += 97) {
    const uint64_t address = pool.allocate(size);
    ASSERT_NE(address, 0U);
    EXPECT_EQ(address % kAlignment, 0U);
    EXPECT_LE(pool.size_of(address), size <= 8 * kKiB ? size + 511 : size + kKiB - 1);
    EXPECT_EQ(pool->find(address)->kind, BlockKind::kSmall);
    pool.free(address);
  }
}

TEST(Spans, NeverShareASlot) {
  JudgedEngine pool(64);
  for (const uint64_t size : {512ULL, 4096ULL, 4608ULL, 16384ULL}) {
    std::set<uint64_t> live;
    for (int i = 0; i < 90; ++i) {
      const uint64_t address = pool.allocate(size);
      ASSERT_NE(address, 0U);
      EXPECT_TRUE(live.insert(address).second);
    }
    for (const uint64_t address : live) pool.free(address);
  }
}

TEST(Spans, FindABlockByItsInterior) {
  JudgedEngine pool(16);
  const uint64_t address = pool.allocate(5000);
  EXPECT_EQ(pool->find(address + 4999)->address, address);
  EXPECT_EQ(pool->find(address + 4999)->requested, 5000U);
  pool.free(address);
  EXPECT_FALSE(pool->find(address + 4999));
}

TEST(Spans, AFreedSlotServesItsStreamWithoutAnEvent) {
  JudgedEngine pool(16);
  pool.allocate(1000, 1);
  const uint64_t first = pool.allocate(1000, 0);
  pool.free(first);
  EXPECT_EQ(pool.allocate(1000, 0), first);
  EXPECT_EQ(pool->cross_stream_waits(), 0U);
  EXPECT_EQ(pool.device().open_events(), 0U);
}

TEST(Spans, StreamsDoNotShareChunks) {
  JudgedEngine pool(16);
  const uint64_t mine = pool.allocate(1000, 0);
  const uint64_t other = pool.allocate(1000, 1);
  EXPECT_NE(mine / kMinChunk, other / kMinChunk);
}

TEST(Spans, ASlotUsedElsewhereStaysTakenUntilThatIsDone) {
  JudgedEngine pool(16);
  const uint64_t address = pool.allocate(1000, 0);
  const uint64_t keeps_chunk = pool.allocate(1000, 0);
  pool.record_stream(address, 1);
  pool.free(address);
  EXPECT_EQ(pool->pending_bytes(), 1024U);
  EXPECT_NE(pool.allocate(1000, 0), address);
  expect_error(Status::kDoubleFree, "freed before", [&] { pool->release(address); });
  while (pool.device().streams().advance(1)) {
  }
  while (pool.device().streams().advance(0)) {
  }
  EXPECT_EQ(pool.allocate(1000, 0), address);
  EXPECT_EQ(pool->pending_bytes(), 0U);
  pool.free(keeps_chunk);
}

TEST(Spans, EmptyChunksServeLargeBlocks) {
  JudgedEngine pool(16);
  std::vector<uint64_t> small;
  for (int i = 0; i < 100; ++i) small.push_back(pool.allocate(8 * kKiB));
  for (const uint64_t address : small) pool.free(address);
  EXPECT_NE(pool.allocate(16 * JudgedEngine::kPage), 0U);
}

TEST(Spans, AnEmptyChunkServesBlocksOfAnotherSize) {
  JudgedEngine pool(4);  // one chunk
  for (const uint64_t size : {512ULL, 1024ULL, 1536ULL, 16384ULL, 600ULL}) {
    std::vector<uint64_t> live;
    for (int i = 0; i < 8; ++i) {
      live.push_back(pool.allocate(size));
      ASSERT_EQ(pool->find(live.back())->kind, BlockKind::kSmall);
    }
    for (const uint64_t address : live) pool.free(address);
  }
}

TEST(Spans, ALoneBlockComesAndGoesInItsChunk) {
  JudgedEngine pool(64);
  const uint64_t first = pool.allocate(1000);
  pool.free(first);
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(pool.allocate(1000), first);
    pool.free(first);
  }
}

TEST(Spans, AChunkInUseIsFilledBeforeAnEmptyOneIsOpened) {
  JudgedEngine pool(64);
  const uint64_t stays = pool.allocate(16 * kKiB);
  std::vector<uint64_t> go;
  for (int i = 0; i < 16; ++i) go.push_back(pool.allocate(16 * kKiB));
  const uint64_t in_second = go.back();  // the first chunk holds 16
  for (const uint64_t address : go) pool.free(address);
  const uint64_t chunk = stays / (256 * kKiB);
  ASSERT_NE(in_second / (256 * kKiB), chunk);
  for (int i = 0; i < 15; ++i) EXPECT_EQ(pool.allocate(16 * kKiB) / (256 * kKiB), chunk);
}

TEST(Spans, ChunksOfAStreamServeAnotherAfterAnEvent) {
  JudgedEngine pool(4);
  const uint64_t small = pool.allocate(8 * kKiB, 1);
  pool.use(small, 1);
  pool.free(small);
  EXPECT_NE(pool.allocate(4 * JudgedEngine::kPage, 0), 0U);
  EXPECT_EQ(pool->cross_stream_waits(), 1U);
}

TEST(Spans, FreesOnAShortLivedStreamAreKnownWhenItIsGone) {
  JudgedEngine pool(16);
  pool->declare_external(DeviceModel::handle(1));
  const uint64_t small = pool.allocate(8 * kKiB, 1);
  pool.use(small, 1);
  pool.free(small);
  pool.free(pool.allocate(kMaxSmall + 1, 1));  // names the stream, but for its last free
  pool.free(pool.allocate(600, 1));
  pool.device().destroy_stream(1);
  EXPECT_NE(pool.allocate(8 * JudgedEngine::kPage, 0), 0U);
  EXPECT_EQ(pool.device().device_waits(), 0U);
  EXPECT_NE(pool.allocate(8 * JudgedEngine::kPage, 0), 0U);
  EXPECT_EQ(pool.device().device_waits(), 1U);
}

TEST(Spans, SlotsOutliveTheirStream) {
  JudgedEngine pool(8);
  pool->declare_external(DeviceModel::handle(1));
  const uint64_t small = pool.allocate(8 * kKiB, 1);
  const uint64_t used = pool.allocate(600, 1);
  pool.record_stream(used, 2);
  pool.device().destroy_stream(1);
  pool.free(small);
  pool.free(used);
  EXPECT_NE(pool.allocate(8 * JudgedEngine::kPage, 0), 0U);
  EXPECT_EQ(pool->pending_bytes(), 0U);
  EXPECT_EQ(pool.device().device_waits(), 1U);
}

TEST(Spans, ASlotFreedOnAnotherStreamStaysTakenUntilThatIsDone) {
  JudgedEngine pool(16);
  const uint64_t address = pool.allocate(1000, 0);
  const uint64_t keeps_chunk = pool.allocate(1000, 0);
  pool.device().streams().work(1);
  pool.free_on(address, 1, 0);
  EXPECT_EQ(pool->pending_bytes(), 1024U);
  EXPECT_NE(pool.allocate(1000, 0), address);
  while (pool.device().streams().advance(0) || pool.device().streams().advance(1)) {
  }
  EXPECT_EQ(pool.allocate(1000, 0), address);
  EXPECT_EQ(pool->pending_bytes(), 0U);
  pool.free(keeps_chunk);
}

TEST(Spans, ChunksFreedOnAnotherStreamNeedNothingOfTheirOwn) {
  JudgedEngine pool(8);
  pool->declare_external(DeviceModel::handle(1));
  const uint64_t small = pool.allocate(8 * kKiB, 1);
  pool.use(small, 1);
  pool.device().destroy_stream(1);
  pool.free_on(small, 2, 1);
  while (pool.device().streams().advance(1) || pool.device().streams().advance(2)) {
  }
  EXPECT_NE(pool.allocate(512, 0), 0U);
  EXPECT_EQ(pool->pending_bytes(), 0U);
  EXPECT_NE(pool.allocate(4 * JudgedEngine::kPage, 0), 0U);
  EXPECT_EQ(pool.device().device_waits(), 0U);
}

TEST(Spans, AStreamCanBeDeclaredShortLivedAfterItsFirstFrees) {
  JudgedEngine pool(8);
  const uint64_t small = pool.allocate(8 * kKiB, 1);
  pool.use(small, 1);
  pool.free(small);
  pool->declare_external(DeviceModel::handle(1));
  pool.device().destroy_stream(1);
  EXPECT_NE(pool.allocate(8 * JudgedEngine::kPage, 0), 0U);
}

TEST(Spans, LargePoolsUseLargeChunks) {
  for (const uint64_t capacity : {128 * kMiB, kGiB}) {
    Engine engine(config_of("null", capacity, 2 * kMiB));
    std::mt19937_64 random(5);
    std::map<uint64_t, uint64_t> live;  // start to end
    for (int i = 0; i < 20000; ++i) {
      if (random() % 5 < 3) {
        const uint64_t size = 1 + random() % kMaxSmall;
        const uint64_t address = engine.allocate(size, random() % 2, 0);
        ASSERT_NE(address, 0U);
        const auto next = live.lower_bound(address);
        ASSERT_TRUE(next == live.end() || next->first >= address + size);
        ASSERT_TRUE(next == live.begin() || std::prev(next)->second <= address);
        live.emplace(address, address + size);
      } else if (!live.empty()) {
        const auto near = live.lower_bound(engine.base() + random() % capacity);
        const auto chosen = near == live.end() ? live.begin() : near;
        EXPECT_EQ(engine.release(chosen->first), chosen->second - chosen->first);
        live.erase(chosen);
      }
      if (i % 500 == 0) engine.check_valid();
    }
  }
}

TEST(Spans, TinyPoolsServeSmallBlocksToo) {
  JudgedEngine pool(1);
  std::vector<uint64_t> live;
  for (uint64_t address = pool.allocate(100); address != 0; address = pool.allocate(100)) {
    live.push_back(address);
  }
  EXPECT_EQ(live.size(), JudgedEngine::kPage / kGranule);
  for (const uint64_t address : live) pool.free(address);
  EXPECT_NE(pool.allocate(JudgedEngine::kPage), 0U);
}

}  // namespace
}  // namespace vramkit
