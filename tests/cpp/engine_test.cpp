#include "pool/engine.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "backend/decorators.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kPage = JudgedEngine::kPage;

/// Live blocks of a page, of which every second is freed: no hole is larger than a page.
std::vector<uint64_t> make_holes(JudgedEngine& pool, uint64_t pages) {
  std::vector<uint64_t> kept;
  std::vector<uint64_t> gone;
  for (uint64_t i = 0; i < pages; ++i) {
    const uint64_t address = pool.allocate(kPage);
    EXPECT_NE(address, 0U);
    (i % 2 == 0 ? gone : kept).push_back(address);
  }
  for (const uint64_t address : gone) pool.free(address);
  return kept;
}

TEST(Engine, ServesBlocksOfEverySize) {
  JudgedEngine pool(64);
  for (uint64_t size = 1; size <= 64 * kPage; size = size * 5 / 3 + 1) {
    const uint64_t address = pool.allocate(size);
    ASSERT_NE(address, 0U) << size;
    EXPECT_EQ(address % kAlignment, 0U);
    EXPECT_GE(pool.size_of(address), size);
    EXPECT_EQ(pool.free(address), size);
  }
}

TEST(Engine, RefusesNoBytes) {
  JudgedEngine pool(4);
  expect_error(Status::kInvalidArgument, "at least one byte", [&] { pool.allocate(0); });
}

class HugeSizes : public testing::TestWithParam<uint64_t> {};

TEST_P(HugeSizes, AreRefusedWithoutOverflow) {
  JudgedEngine pool(4);
  EXPECT_EQ(pool.allocate(GetParam()), 0U);
  EXPECT_EQ(pool->counters().failures, 1U);
  EXPECT_EQ(pool->counters().allocations, 0U);
}

INSTANTIATE_TEST_SUITE_P(Sizes, HugeSizes,
                         testing::Values(4 * kPage + 1, uint64_t{1} << 62, uint64_t{1} << 63,
                                         ~uint64_t{0} - 511, ~uint64_t{0}));

TEST(Engine, StitchesFreePagesWhenNoHoleFits) {
  JudgedEngine pool(8);
  make_holes(pool, 8);
  const uint64_t address = pool.allocate(3 * kPage - 100);
  ASSERT_NE(address, 0U);
  EXPECT_EQ(pool->find(address)->kind, BlockKind::kStitched);
  EXPECT_EQ(pool.size_of(address), 3 * kPage);
  EXPECT_EQ(pool->counters().stitched_requests, 1U);
  EXPECT_EQ(pool->counters().stitched_pages, 3U);
}

TEST(Engine, AStitchedAddressServesAgainWithoutMapping) {
  JudgedEngine pool(8);
  make_holes(pool, 8);
  const uint64_t address = pool.allocate(4 * kPage);
  pool.free(address);
  const uint64_t calls = pool->pages().mapping_calls();
  EXPECT_EQ(pool.allocate(3 * kPage), address) << "a shorter block fits too";
  EXPECT_EQ(pool->pages().mapping_calls(), calls);
  EXPECT_EQ(pool->counters().alias_hits, 1U);
  EXPECT_EQ(pool->counters().stitched_requests, 1U);
}

TEST(Engine, AnAliasWhosePagesAreTakenDoesNotServe) {
  JudgedEngine pool(8);
  make_holes(pool, 8);
  const uint64_t address = pool.allocate(3 * kPage);
  pool.free(address);
  ASSERT_NE(pool.allocate(kPage), 0U);
  const uint64_t other = pool.allocate(3 * kPage);
  ASSERT_NE(other, 0U);
  EXPECT_NE(other, address);
}

TEST(Engine, WhatCannotBeServedChangesNothing) {
  JudgedEngine pool(8);
  make_holes(pool, 8);
  const uint64_t live = pool->counters().live_bytes;
  EXPECT_EQ(pool.allocate(5 * kPage), 0U);
  EXPECT_EQ(pool->counters().live_bytes, live);
  EXPECT_EQ(pool->counters().failures, 1U);
  EXPECT_NE(pool.allocate(4 * kPage), 0U);
}

TEST(Engine, RefusesWhatItNeverGaveOut) {
  JudgedEngine pool(8);
  const uint64_t base = pool->base();
  for (const uint64_t address :
       {base - 1, base + pool->address_bytes(), uint64_t{0}, ~uint64_t{0}}) {
    expect_error(Status::kForeignPointer, "was not allocated by this pool",
                 [&] { pool->release(address); });
    expect_error(Status::kForeignPointer, "free it where it was allocated",
                 [&] { pool->record_stream(address, 0); });
    EXPECT_FALSE(pool->find(address));
  }
}

class BlockOfEachKind : public testing::TestWithParam<uint64_t> {};

TEST_P(BlockOfEachKind, IsFreedOnceAndAtItsStart) {
  JudgedEngine pool(16);
  make_holes(pool, 10);
  const uint64_t blocker = pool.allocate(6 * kPage);
  const uint64_t address = pool.allocate(GetParam());
  ASSERT_NE(address, 0U);
  for (const uint64_t inside : {address + 1, address + 512, address + GetParam() - 1}) {
    expect_error(Status::kDoubleFree, "lies inside the live block", [&] { pool->release(inside); });
    expect_error(Status::kDoubleFree, "free that", [&] { pool->record_stream(inside, 16); });
  }
  const uint64_t other = address + 4 * kPage;
  pool.free(address);
  for (const uint64_t gone : {address, address + 512, other}) {
    if (pool->find(gone)) continue;
    expect_error(Status::kDoubleFree, "no live block starts at", [&] { pool->release(gone); });
  }
  pool.free(blocker);
}

INSTANTIATE_TEST_SUITE_P(Sizes, BlockOfEachKind, testing::Values(1000, kPage - 512, 4 * kPage));

TEST(Engine, AnotherStreamWaitsForFreedMemory) {
  JudgedEngine pool(4);
  const uint64_t address = pool.allocate(4 * kPage, 1);
  pool.use(address, 1);
  pool.free(address);
  EXPECT_EQ(pool.allocate(4 * kPage, 2), address);
  EXPECT_EQ(pool->cross_stream_waits(), 1U);
}

TEST(Engine, NeighboursFreedBySeveralStreamsServeAFourth) {
  JudgedEngine pool(3);
  std::vector<uint64_t> blocks;
  for (size_t stream = 0; stream < 3; ++stream) blocks.push_back(pool.allocate(kPage, stream));
  for (size_t stream = 0; stream < 3; ++stream) {
    pool.use(blocks[stream], stream);
    pool.free(blocks[stream]);
  }
  EXPECT_EQ(pool.allocate(3 * kPage, 3), blocks[0]);
  EXPECT_EQ(pool->cross_stream_waits(), 3U);
}

TEST(Engine, StitchingWaitsForEveryStreamWhosePagesItTakes) {
  JudgedEngine pool(6);
  std::vector<uint64_t> blocks;
  for (size_t i = 0; i < 6; ++i) blocks.push_back(pool.allocate(kPage, i % 2 == 0 ? 0 : i / 2 + 1));
  for (const size_t i : {1, 3, 5}) pool.record_stream(blocks[i], 0);
  for (const size_t i : {1, 3, 5}) pool.free(blocks[i]);
  EXPECT_NE(pool.allocate(3 * kPage, 1), 0U);
  EXPECT_GE(pool->cross_stream_waits(), 3U);
}

TEST(Engine, AStitchedBlockUsedElsewhereHoldsItsPages) {
  JudgedEngine pool(8);
  make_holes(pool, 8);
  const uint64_t address = pool.allocate(4 * kPage, 0);
  pool.record_stream(address, 1);
  pool.free(address);
  EXPECT_EQ(pool->pending_bytes(), 4 * kPage);
  EXPECT_EQ(pool.allocate(4 * kPage, 0), address) << "after a wait for stream 1";
  EXPECT_EQ(pool->cross_stream_waits(), 1U);
  EXPECT_EQ(pool->pending_bytes(), 0U);
}

TEST(Engine, ACaptureTakesOnlyWhatNeedsNoWait) {
  JudgedEngine pool(8);
  const uint64_t own = pool.allocate(4 * kPage, 0);
  const uint64_t foreign = pool.allocate(4 * kPage, 1);
  pool.use(foreign, 1);
  pool.free(foreign);
  pool.free(own);
  pool.device().set_capturing(true);
  EXPECT_EQ(pool.allocate(5 * kPage, 0), 0U);
  EXPECT_EQ(pool.allocate(4 * kPage, 0), own);
  EXPECT_EQ(pool.allocate(kPage, 0), 0U);
  pool.device().set_capturing(false);
  EXPECT_EQ(pool.allocate(4 * kPage, 0), foreign);
}

TEST(Engine, UnmapsNothingDuringACapture) {
  JudgedEngine pool(8, "null", 4);
  const std::vector<uint64_t> kept = make_holes(pool, 8);
  pool.free(pool.allocate(3 * kPage));
  pool.free(kept[0]);
  pool.device().set_capturing(true);
  EXPECT_EQ(pool.allocate(4 * kPage), 0U) << "the idle alias cannot be given up now";
  expect_error(Status::kBusy, "being captured", [&] { pool->trim(); });
  expect_error(Status::kBusy, "being captured", [&] { pool->resize(4 * kPage); });
  pool.device().set_capturing(false);
  EXPECT_NE(pool.allocate(4 * kPage), 0U);
}

TEST(Engine, TheCapOnAliasesIsKept) {
  JudgedEngine pool(16, "null", 3);
  make_holes(pool, 16);
  EXPECT_EQ(pool.allocate(4 * kPage), 0U);
  const uint64_t live = pool.allocate(3 * kPage);
  EXPECT_NE(live, 0U);
  EXPECT_EQ(pool.allocate(2 * kPage), 0U);
  pool.free(live);
  EXPECT_EQ(pool.allocate(3 * kPage), live);
}

class FailingCalls : public testing::TestWithParam<std::tuple<const char*, const char*, uint64_t>> {
};

TEST_P(FailingCalls, LeaveThePoolAsItWas) {
  const auto [backend, call, nth] = GetParam();
  JudgedEngine pool(16, backend);
  std::vector<uint64_t> blocks;
  for (size_t i = 0; i < 12; ++i) blocks.push_back(pool.allocate(kPage, i % 3));
  for (size_t i = 0; i < 12; i += 2) pool.free(blocks[i]);
  const Counters before = pool->counters();
  pool->inject_fault(call, nth);
  uint64_t address = 0;
  try {
    address = pool.allocate(6 * kPage, 1);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("injected failure"), std::string::npos);
    EXPECT_EQ(pool->counters().live_bytes, before.live_bytes);
    EXPECT_EQ(pool->counters().live_blocks, before.live_blocks);
    EXPECT_EQ(pool->counters().stitched_requests, before.stitched_requests);
  }
  pool.check();
  pool->inject_fault(call, 0);
  if (address == 0) address = pool.allocate(6 * kPage, 1);
  EXPECT_NE(address, 0U);
}

INSTANTIATE_TEST_SUITE_P(Calls, FailingCalls,
                         testing::Combine(testing::Values("null", "memfd", "host"),
                                          testing::Values("map_primary", "map_alias", "unmap_alias",
                                                          "record_event", "stream_wait"),
                                          testing::Values(1, 2, 3)));

TEST(Engine, AFreeDoesNotFailWhenItsEventCannotBeRecorded) {
  JudgedEngine pool(8);
  const uint64_t address = pool.allocate(kPage, 0);
  pool.record_stream(address, 1);
  pool->inject_fault("record_event", 1);
  testing::internal::CaptureStderr();
  pool.free(address);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("recorded later"), std::string::npos);
  EXPECT_EQ(pool.allocate(8 * kPage, 0), address);
}

TEST(Engine, AnOwedEventThatFailsIsNoFailureOfTheRequest) {
  JudgedEngine pool(8);
  const uint64_t address = pool.allocate(8 * kPage, 0);
  pool.record_stream(address, 1);
  pool->inject_fault("record_event", 1);
  testing::internal::CaptureStderr();
  pool.free(address);
  testing::internal::GetCapturedStderr();
  pool->inject_fault("record_event", 1);
  EXPECT_EQ(pool.allocate(8 * kPage, 0), address) << "recorded when it was waited for";
}

TEST(Engine, SeveralPageSizesWork) {
  for (uint64_t page = 64 * kKiB; page <= 4 * kMiB; page *= 2) {
    Engine engine(config_of("null", 8 * page + page / 2, page));
    EXPECT_EQ(engine.capacity_bytes(), 8 * page) << "rounded down";
    EXPECT_NE(engine.allocate(8 * page, 0, 0), 0U);
    engine.check_valid();
  }
}

/// The offsets that a pool gives to random blocks of two streams, in a capacity that is nearly used
/// up at first and has room afterwards.
std::vector<uint64_t> offsets_of_a_random_run(bool resets_statistics) {
  constexpr uint64_t kPages = 64;
  Engine engine(config_of("null", kPages * kPage));
  std::mt19937_64 random(9);
  std::vector<uint64_t> offsets;
  std::vector<uint64_t> live;
  const auto free_one = [&] {
    const size_t i = random() % live.size();
    engine.release(live[i]);
    live[i] = live.back();
    live.pop_back();
  };
  for (int i = 0; i < 4000; ++i) {
    if (resets_statistics && i % 50 == 0) engine.reset_peaks();
    const uint64_t limit = (i < 400 ? kPages : kPages / 2) * kPage;
    const uint64_t size = kPage / 4 + random() % (4 * kPage);
    const uint64_t stream = random() % 2;
    while (!live.empty() && engine.counters().allocated_bytes + size > limit) free_one();
    const uint64_t address = engine.allocate(size, stream, 0);
    offsets.push_back(address == 0 ? 0 : address - engine.base());
    if (address != 0) live.push_back(address);
  }
  return offsets;
}

TEST(Engine, ResettingStatisticsChangesNoPlacement) {
  EXPECT_EQ(offsets_of_a_random_run(true), offsets_of_a_random_run(false));
}

TEST(Engine, RefusesImpossiblePools) {
  const auto make = [](uint64_t capacity, uint64_t page) {
    return [=] { Engine engine(config_of("host", capacity, page)); };
  };
  expect_error(Status::kInvalidArgument, "less than one page", make(0, 64 * kKiB));
  expect_error(Status::kInvalidArgument, "less than one page", make(64 * kKiB - 1, 64 * kKiB));
  expect_error(Status::kInvalidArgument, "that the machine has",
               make(uint64_t{1} << 63, 64 * kKiB));
  expect_error(Status::kInvalidArgument, "that the machine has", make(~uint64_t{0}, 2 * kMiB));
  for (const uint64_t page : {uint64_t{0}, 32 * kKiB, 3 * kMiB, 2 * kGiB, ~uint64_t{0}}) {
    expect_error(Status::kInvalidArgument, "power of two from 64KiB to 1GiB", make(kGiB, page));
  }
}

TEST(Engine, SmallBlocksAreFreeAfterAWaitForRoomForAnAlias) {
  struct FewAliases : Decorator {
    using Decorator::Decorator;
    uint64_t max_alias_pages() const override { return 4; }
  };
  Engine pool(config_of("null", 64 * kPage),
              std::make_unique<FewAliases>(make_backend("null+late_events")));
  const uint64_t small = pool.allocate(512, 0, 0);
  pool.record_stream(small, 1);
  std::vector<uint64_t> pages;
  while (const uint64_t page = pool.allocate(kPage, 0, 0)) pages.push_back(page);
  pool.release(small);
  EXPECT_EQ(pool.pending_bytes(), 512U);
  for (size_t i = 0; i < 20; i += 2) pool.release(pages[i]);
  pool.release(pool.allocate(3 * kPage, 0, 0));
  EXPECT_NE(pool.allocate(4 * kPage, 0, 0), 0U);  // in place of the first alias
  EXPECT_EQ(pool.pending_bytes(), 0U);
  pool.check_valid();
}

TEST(Engine, ChunksThatFallEmptyDuringARequestServeIt) {
  JudgedEngine pool(8);
  const uint64_t small = pool.allocate(100, 0);
  pool.record_stream(small, 1);
  pool.free(small);
  while (pool.device().streams().advance(0) || pool.device().streams().advance(1)) {
  }
  EXPECT_NE(pool.allocate(8 * kPage, 0), 0U);
}

/// A device of which others have all that the pool does not hold, while `full`.
struct FullDevice : Decorator {
  using Decorator::Decorator;
  void map_primary(PageRun run) override {
    if (full) throw_error(Status::kOutOfMemory, "the device has no page left");
    Decorator::map_primary(run);
  }
  bool full = false;
};

/// An engine on such a device.
struct OnFullDevice {
  OnFullDevice(const std::string& backend, uint64_t pages)
      : OnFullDevice(backend, pages, std::make_unique<FullDevice>(make_backend(backend))) {}

  FullDevice& device;
  Engine pool;

 private:
  OnFullDevice(const std::string& backend, uint64_t pages, std::unique_ptr<FullDevice> owned)
      : device(*owned), pool(config_of(backend, pages * kPage), std::move(owned)) {}
};

TEST(Engine, WithoutMemoryOnTheDevicePagesInPartlyUseServe) {
  OnFullDevice on("null", 16);
  auto& [device, pool] = on;
  const uint64_t freed = pool.allocate(kPage, 0, 0);
  pool.allocate(kPage, 0, 0);
  pool.release(freed);
  pool.trim();
  const uint64_t half = pool.allocate(kPage / 2, 0, 0);
  device.full = true;
  const uint64_t small = pool.allocate(100, 0, 0);
  EXPECT_NE(small, 0U);
  EXPECT_EQ(align_down(small, kPage), align_down(half, kPage));
  pool.check_valid();
}

TEST(Engine, WithoutMemoryOnTheDeviceStreamsThatMayBeGoneAreWaitedFor) {
  OnFullDevice on("null+late_events", 16);
  auto& [device, pool] = on;
  pool.declare_external(1);
  const uint64_t orphan = pool.allocate(4 * kPage, 1, 0);
  device.full = true;
  pool.release(orphan);
  EXPECT_EQ(pool.allocate(4 * kPage, 2, 0), orphan);
  pool.check_valid();
}

TEST(Engine, WithoutMemoryOnTheDeviceNoAliasOfPagesWithoutAnyServes) {
  OnFullDevice on("host", 8);
  auto& [device, pool] = on;
  std::vector<uint64_t> blocks;
  for (int i = 0; i < 8; ++i) blocks.push_back(pool.allocate(kPage, 0, 0));
  for (const size_t i : {0, 2}) pool.release(blocks[i]);
  pool.trim();
  for (const size_t i : {4, 6}) pool.release(blocks[i]);
  device.full = true;
  EXPECT_NE(pool.allocate(2 * kPage, 0, 0), 0U);
  pool.check_valid();
}

TEST(Engine, WithoutMemoryOnTheDeviceWhatIsHeldServes) {
  OnFullDevice on("null+late_events", 16);
  auto& [device, pool] = on;
  std::vector<uint64_t> held;
  for (int i = 0; i < 6; ++i) held.push_back(pool.allocate(kPage, 0, 0));
  device.full = true;
  for (const size_t i : {0, 2, 4}) pool.release(held[i]);
  const uint64_t stitched = pool.allocate(3 * kPage, 0, 0);
  ASSERT_NE(stitched, 0U);
  EXPECT_EQ(pool.find(stitched)->kind, BlockKind::kStitched);
  expect_error(Status::kOutOfMemory, "no page left", [&] { pool.allocate(kPage, 0, 0); });
  expect_error(Status::kOutOfMemory, "no page left", [&] { pool.allocate(100, 0, 0); });
  pool.release(held[1]);
  const uint64_t small = pool.allocate(100, 0, 0);
  EXPECT_NE(small, 0U);
  pool.check_valid();
  device.full = false;
  EXPECT_NE(pool.allocate(8 * kPage, 0, 0), 0U) << "once there is memory again, it is used";
  pool.release(small);
  pool.release(stitched);
  pool.check_valid();
}

}  // namespace
}  // namespace vramkit
