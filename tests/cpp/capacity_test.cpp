// Growing, shrinking and trimming.
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kPage = JudgedEngine::kPage;

class Capacity : public testing::TestWithParam<const char*> {};

TEST_P(Capacity, GrowsAndShrinks) {
  JudgedEngine pool(8, GetParam());
  EXPECT_EQ(pool.allocate(12 * kPage), 0U);
  pool->resize(16 * kPage + 5);
  EXPECT_EQ(pool->capacity_bytes(), 16 * kPage);
  const uint64_t address = pool.allocate(12 * kPage);
  EXPECT_NE(address, 0U);
  pool.free(address);
  pool->resize(4 * kPage);
  pool.check();
  EXPECT_EQ(pool->capacity_bytes(), 4 * kPage);
  EXPECT_LE(pool->pages().backed_count(), 4U);
  EXPECT_EQ(pool.allocate(5 * kPage), 0U);
  EXPECT_NE(pool.allocate(4 * kPage), 0U);
}

TEST(CapacityInTheBackground, WhatWasMappedIsHeldToo) {
  // The device has memory for five pages; a chunk of small blocks wants four.
  Engine pool(config_of("memfd+limit=327680+slow_maps", 8 * kPage));
  const uint64_t first = pool.allocate(kPage, 0, 0);
  const std::shared_ptr<BackgroundMapping> mapping = pool.next_background_mapping(2);
  ASSERT_NE(mapping, nullptr);
  mapping->map();
  const uint64_t second = pool.allocate(100, 0, 0);
  EXPECT_NE(second, 0U);
  pool.check_valid();
  pool.release(first);
  pool.release(second);
}

TEST_P(Capacity, NeverShrinksBelowWhatIsLive) {
  JudgedEngine pool(8, GetParam());
  pool.allocate(3 * kPage + 1);
  expect_error(Status::kBusy, "only 256.0 KiB of whole pages are free",
               [&] { pool->resize(kPage); });
  EXPECT_EQ(pool->capacity_bytes(), 8 * kPage);
  pool->resize(4 * kPage);
  pool.check();
  expect_error(Status::kInvalidArgument, "less than one page", [&] { pool->resize(0); });
  expect_error(Status::kInvalidArgument, "the machine has", [&] { pool->resize(~uint64_t{0}); });
  EXPECT_EQ(pool->capacity_bytes(), 4 * kPage);
}

TEST_P(Capacity, TrimGivesBackWhatIsFree) {
  JudgedEngine pool(8, GetParam());
  const uint64_t kept = pool.allocate(kPage + 1);
  pool.free(pool.allocate(6 * kPage));
  EXPECT_EQ(pool->trim(), 6 * kPage);
  pool.check();
  EXPECT_EQ(pool->pages().backed_count(), 2U);
  EXPECT_EQ(pool->capacity_bytes(), 8 * kPage);
  EXPECT_EQ(pool->trim(), 0U);
  EXPECT_NE(pool.allocate(6 * kPage), 0U);
  pool.free(kept);
}

TEST_P(Capacity, TrimWaitsForSmallBlocksToo) {
  JudgedEngine pool(8, GetParam());
  for (size_t stream = 0; stream < 2; ++stream) {
    const uint64_t small = pool.allocate(600, stream);
    pool.use(small, stream);
    pool.free(small);
  }
  EXPECT_GT(pool->trim(), 0U);
  pool.check();
}

TEST_P(Capacity, TrimWaitsForRecordedUses) {
  JudgedEngine pool(8, GetParam());
  for (const uint64_t size : {uint64_t{600}, kPage}) {
    const uint64_t address = pool.allocate(size, 0);
    pool.record_stream(address, 1);
    pool.free(address);
  }
  EXPECT_GE(pool->trim(), 5 * kPage);
  pool.check();
  EXPECT_EQ(pool->pages().backed_count(), 0U);
}

TEST_P(Capacity, TrimTakesWhatAStitchedBlockDoesNotUse) {
  JudgedEngine pool(8, GetParam());
  std::vector<uint64_t> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(pool.allocate(kPage));
  for (size_t i = 0; i < 8; i += 2) pool.free(blocks[i]);
  pool.free(pool.allocate(4 * kPage));
  const uint64_t prefix = pool.allocate(2 * kPage);
  EXPECT_EQ(pool->counters().alias_hits, 1U);
  EXPECT_EQ(pool->trim(), 2 * kPage);
  pool.check();
  pool.free(prefix);
}

TEST_P(Capacity, TrimsAThousandTimes) {
  JudgedEngine pool(8, GetParam());
  for (int i = 0; i < 1000; ++i) {
    pool.free(pool.allocate(8 * kPage));
    EXPECT_EQ(pool->trim(), 8 * kPage);
  }
  pool.check();
}

TEST_P(Capacity, ResizesAThousandTimes) {
  JudgedEngine pool(8, GetParam());
  pool.allocate(kPage);
  for (uint64_t i = 0; i < 1000; ++i) {
    pool->resize((2 + i * 7 % 15) * kPage);
    const uint64_t address = pool.allocate((1 + i * 7 % 15) * kPage);
    ASSERT_NE(address, 0U);
    pool.free(address);
  }
}

TEST_P(Capacity, FaultsWhileGivingBackAreContinued) {
  for (const char* call : {"unmap_and_release", "unmap_alias", "record_event"}) {
    JudgedEngine pool(12, GetParam());
    std::vector<uint64_t> blocks;
    for (int i = 0; i < 12; ++i) blocks.push_back(pool.allocate(kPage, 1));
    for (size_t i = 0; i < 12; i += 2) pool.free(blocks[i]);
    pool.free(pool.allocate(5 * kPage));
    pool->inject_fault(call, 2);
    for (int round = 0; round < 2; ++round) {
      try {
        pool->trim();
        pool->resize(7 * kPage);
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("injected"), std::string::npos) << error.what();
      }
      pool.check();
    }
    EXPECT_EQ(pool->capacity_bytes(), 7 * kPage);
    EXPECT_EQ(pool->pages().backed_count(), 6U);
  }
}

TEST_P(Capacity, AnAddressThatLostItsMemoryIsNotUsedAgain) {
  JudgedEngine pool(12, GetParam());
  std::vector<uint64_t> blocks = {pool.allocate(kPage)};  // page 0
  blocks.push_back(pool.allocate(600));                   // a chunk: pages 4 to 7
  blocks.push_back(pool.allocate(2 * kPage));             // pages 1 and 2
  for (const uint64_t block : blocks) pool.free(block);
  EXPECT_EQ(pool->pages().backed_count(), 7U);
  pool->inject_fault("unmap_and_release", 2);
  expect_error(Status::kSystem, "injected", [&] { pool->resize(kPage); });
  pool.check();
  pool.allocate(pool->capacity_bytes());
}

INSTANTIATE_TEST_SUITE_P(Backends, Capacity, testing::Values("null", "memfd", "host"));

TEST(Addresses, EndCleanlyWhereTheyAreRetired) {
  Engine engine(config_of("null", kGiB, 64 * kMiB));
  uint64_t trims = 0;
  while (true) {
    const uint64_t address = engine.allocate(kGiB, 0, 0);
    ASSERT_NE(address, 0U);
    engine.release(address);
    if (engine.trim() == 0) break;
    ASSERT_LT(++trims, 1000U);
  }
  EXPECT_GT(trims, 20U);
  engine.check_valid();
  EXPECT_NE(engine.allocate(kGiB, 0, 0), 0U) << "the memory is still there";
  expect_error(Status::kInvalidArgument, "has addresses for 0 B more, up to a capacity of",
               [&] { engine.resize(2 * kGiB); });
  EXPECT_EQ(engine.capacity_bytes(), kGiB);
}

TEST(Addresses, OfStitchedBlocksEndAsOutOfMemory) {
  constexpr uint64_t kLarge = 64 * kMiB;
  Engine engine(config_of("null", 12 * kLarge, kLarge));
  uint64_t stitched = 0;
  for (uint64_t round = 0; round < 100000; ++round) {
    std::vector<uint64_t> blocks;
    for (int i = 0; i < 12; ++i) blocks.push_back(engine.allocate(kLarge, 0, 0));
    std::vector<uint64_t> kept;
    // Another choice of pages each time.
    uint64_t choice = round * 2654435761U;
    for (const uint64_t block : blocks) {
      choice = choice * 6364136223846793005U + 1;
      if (choice >> 63 == 0) {
        engine.release(block);
      } else {
        kept.push_back(block);
      }
    }
    const uint64_t pages = engine.free_page_bytes() / kLarge;
    if (pages > 0 && engine.largest_free_extent() < pages * kLarge) {
      const uint64_t address = engine.allocate(pages * kLarge, 0, 0);
      if (address == 0) break;
      ++stitched;
      engine.release(address);
    }
    for (const uint64_t block : kept) engine.release(block);
  }
  EXPECT_GT(stitched, 100U);
  EXPECT_EQ(engine.counters().failures, 1U) << "no exception, and not for ever";
  engine.check_valid();
}

TEST(Trim, LeavesLockedMemoryAndGoesOn) {
  Engine engine(config_of("host", 8 * kPage));
  const uint64_t address = engine.allocate(8 * kPage, 0, 0);
  std::memset(reinterpret_cast<void*>(address), 1, 8 * kPage);
  void* const locked = reinterpret_cast<void*>(address + 3 * kPage);
  // The sanitizers make mlock() do nothing.
  if (::syscall(SYS_mlock, locked, 4096) != 0) GTEST_SKIP() << "this process may not lock memory";
  engine.release(address);
  testing::internal::CaptureStderr();
  EXPECT_EQ(engine.trim(), 7 * kPage);
  const std::string told = testing::internal::GetCapturedStderr();
  EXPECT_NE(told.find("trim() gave 448.0 KiB back and left 64.0 KiB"), std::string::npos) << told;
  EXPECT_NE(told.find("munlock()"), std::string::npos) << told;
  engine.check_valid();
  ASSERT_EQ(::syscall(SYS_munlock, locked, 4096), 0);
  EXPECT_EQ(engine.trim(), kPage);
  engine.check_valid();
}

TEST(Trim, GoesOnAfterARefusalWhereAddressesAreRetired) {
  Engine engine(config_of("memfd+faults", 8 * kPage));
  engine.release(engine.allocate(8 * kPage, 0, 0));
  engine.inject_fault("unmap_and_release", 1);
  EXPECT_EQ(engine.trim(), 8 * kPage);
  EXPECT_EQ(engine.capacity_bytes(), 8 * kPage);
  engine.check_valid();
}

}  // namespace
}  // namespace vramkit
