#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "pool/engine.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kPage = JudgedEngine::kPage;

/// A pool whose streams, but for the first, may be destroyed while their blocks live.
class ExternalStreams : public testing::Test {
 protected:
  ExternalStreams() {
    for (size_t stream = 1; stream < DeviceModel::kStreams; ++stream) {
      pool_->declare_external(DeviceModel::handle(stream));
    }
  }
  /// Blocks of a page each: the stream of each, in the order of their addresses.
  std::vector<uint64_t> make_pages(const std::vector<size_t>& streams) {
    std::vector<uint64_t> pages;
    for (const size_t stream : streams) pages.push_back(pool_.allocate(kPage, stream));
    return pages;
  }
  void destroy(size_t stream) { pool_.device().destroy_stream(stream); }
  uint64_t device_waits() { return pool_.device().device_waits(); }

  JudgedEngine pool_{8};
};

TEST_F(ExternalStreams, MemoryOfAStreamThatIsGoneComesLast) {
  const uint64_t orphan = pool_.allocate(3 * kPage, 1);
  pool_.use(orphan, 1);
  destroy(1);
  pool_.free(orphan);
  EXPECT_NE(pool_.allocate(5 * kPage, 0), 0U);
  EXPECT_EQ(device_waits(), 0U) << "there was other memory";
  EXPECT_EQ(pool_.allocate(3 * kPage, 0), orphan);
  EXPECT_EQ(device_waits(), 1U);
  EXPECT_EQ(pool_->counters().failures, 0U);
}

TEST_F(ExternalStreams, OneWaitForTheDeviceServesAll) {
  const std::vector<uint64_t> pages = make_pages({1, 2, 3, 1, 2, 3, 1, 2});
  for (const uint64_t page : pages) pool_.use(page, page == pages[0] ? 1 : 0);
  for (const size_t stream : {1, 2, 3}) destroy(stream);
  for (const uint64_t page : pages) pool_.free(page);
  for (size_t i = 0; i < pages.size(); ++i) EXPECT_NE(pool_.allocate(kPage, 0), 0U);
  EXPECT_EQ(device_waits(), 1U);
  EXPECT_EQ(pool_.allocate(kPage, 0), 0U);
  EXPECT_EQ(device_waits(), 1U) << "it would help nothing";
}

TEST_F(ExternalStreams, WhatCanNeverBeServedIsNotWaitedFor) {
  const uint64_t orphan = pool_.allocate(kPage, 1);
  destroy(1);
  pool_.free(orphan);
  EXPECT_EQ(pool_.allocate(9 * kPage, 0), 0U);
  EXPECT_EQ(device_waits(), 0U);
}

TEST_F(ExternalStreams, AStreamTakesItsOwnMemoryWithoutAnything) {
  const uint64_t own = pool_.allocate(8 * kPage, 1);
  pool_.free(own);
  const size_t events = pool_.device().open_events();
  pool_.device().set_capturing(true);
  EXPECT_EQ(pool_.allocate(8 * kPage, 1), own);
  EXPECT_EQ(pool_.device().open_events(), events);
  EXPECT_EQ(device_waits(), 0U);
}

TEST_F(ExternalStreams, EveryCallThatNamesAStreamRecordsWhatItLacks) {
  const std::array<void (*)(JudgedEngine&, uint64_t), 3> calls = {
      [](JudgedEngine& pool, uint64_t) { pool.allocate(512, 1); },
      [](JudgedEngine& pool, uint64_t live) {
        pool.record_stream(live, 1);
        pool.device().set_capturing(true);  // so that the free records nothing
        pool.free(live);
        pool.device().set_capturing(false);
      },
      [](JudgedEngine& pool, uint64_t live) { pool.free_on(live, 1, 0); }};
  for (const auto& call : calls) {
    JudgedEngine pool(16);
    pool->declare_external(DeviceModel::handle(1));
    const uint64_t live = pool.allocate(kPage, 0);
    const uint64_t freed = pool.allocate(11 * kPage, 1);
    pool.use(freed, 1);
    pool.free(freed);
    call(pool, live);
    pool.device().destroy_stream(1);
    EXPECT_NE(pool.allocate(11 * kPage, 2), 0U);
    EXPECT_EQ(pool.device().device_waits(), 0U);
  }
}

TEST_F(ExternalStreams, AnEventThatFailsIsReportedAndNotThrown) {
  pool_.free(pool_.allocate(kPage, 1));
  pool_->inject_fault("record_event", 1);
  testing::internal::CaptureStderr();
  EXPECT_NE(pool_.allocate(kPage, 1), 0U);
  EXPECT_NE(testing::internal::GetCapturedStderr().find("recorded later"), std::string::npos);
}

TEST_F(ExternalStreams, ACaptureNeverWaitsForTheDevice) {
  const uint64_t orphan = pool_.allocate(8 * kPage, 1);
  destroy(1);
  pool_.free(orphan);
  pool_.device().set_capturing(true);
  EXPECT_EQ(pool_.allocate(kPage, 0), 0U);
  EXPECT_EQ(pool_.allocate(512, 0), 0U);
  expect_error(Status::kBusy, "being captured", [&] { pool_->trim(); });
  EXPECT_EQ(device_waits(), 0U);
  pool_.device().set_capturing(false);
  EXPECT_EQ(pool_.allocate(8 * kPage, 0), orphan);
  EXPECT_EQ(device_waits(), 1U);
}

TEST_F(ExternalStreams, AFailedWaitForTheDeviceChangesNothing) {
  const uint64_t orphan = pool_.allocate(8 * kPage, 1);
  destroy(1);
  pool_.free(orphan);
  pool_->inject_fault("synchronize_all", 1);
  expect_error(Status::kSystem, "injected failure of synchronize_all",
               [&] { pool_.allocate(kPage, 0); });
  EXPECT_EQ(pool_.allocate(8 * kPage, 0), orphan);
}

TEST_F(ExternalStreams, GivingMemoryBackWaitsForTheDevice) {
  const uint64_t orphan = pool_.allocate(kPage, 1);
  destroy(1);
  pool_.free(orphan);
  EXPECT_GT(pool_->trim(), 0U);
  EXPECT_EQ(device_waits(), 1U);
  const uint64_t other = pool_.allocate(kPage, 2);
  destroy(2);
  pool_.free(other);
  pool_->resize(4 * kPage);
  EXPECT_EQ(device_waits(), 2U);
}

TEST_F(ExternalStreams, WhatMergesAfterALookAtEventsIsNotTakenForObtainable) {
  pool_.free(pool_.allocate(2 * kPage, 3));  // from now on the place of such a request
  pool_.free(pool_.allocate(8 * kPage, 1));
  const uint64_t used = pool_.allocate(2 * kPage, 1);
  const uint64_t behind = pool_.allocate(2 * kPage, 1);
  pool_.record_stream(used, 2);
  pool_.free(used);
  pool_.record_stream(behind, 1);  // an event for the first block
  pool_.free(behind);              // none for the second, which the first merges with
  destroy(1);
  while (pool_.device().streams().advance(1) || pool_.device().streams().advance(2)) {
  }
  EXPECT_NE(pool_.allocate(2 * kPage, 3), 0U);
}

TEST_F(ExternalStreams, StitchingJoinsWhatNeedsNoStreamThatIsGone) {
  const std::vector<uint64_t> pages = make_pages({0, 0, 1, 0, 0, 0, 0, 0});
  destroy(1);
  for (const size_t i : {0, 2, 4, 6}) pool_.free(pages[i]);
  EXPECT_NE(pool_.allocate(3 * kPage, 0), 0U);
  EXPECT_EQ(pool_->counters().stitched_requests, 1U);
  EXPECT_EQ(device_waits(), 0U);
}

class StretchPart : public ExternalStreams, public testing::WithParamInterface<size_t> {};

TEST_P(StretchPart, IsTakenWhereTheRestCannotBeHad) {
  std::vector<size_t> streams(8, 0);
  for (size_t i = 0; i < 3; ++i) streams[i] = i == GetParam() ? 0 : 1;
  const std::vector<uint64_t> pages = make_pages(streams);
  pool_.use(pages[GetParam()], 0);
  destroy(1);
  for (size_t i = 0; i < 3; ++i) pool_.free(pages[i]);
  EXPECT_EQ(pool_.allocate(kPage, 2), pages[GetParam()]);
  EXPECT_EQ(pool_->cross_stream_waits(), 1U);
  EXPECT_EQ(device_waits(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Places, StretchPart, testing::Values(0, 1, 2));

TEST(ReleaseOn, TheBlockBelongsToTheStreamThatFreedIt) {
  JudgedEngine pool(8);
  const uint64_t address = pool.allocate(8 * kPage, 0);
  pool.use(address, 0);
  pool.free_on(address, 1, 0);
  EXPECT_EQ(pool.allocate(8 * kPage, 1), address);
  EXPECT_EQ(pool->cross_stream_waits(), 0U);
}

TEST(ReleaseOn, ReturnsTheSizeThatWasAskedFor) {
  JudgedEngine pool(8);
  for (const uint64_t size : {uint64_t{100}, 3 * kPage - 7}) {
    EXPECT_EQ(pool.free_on(pool.allocate(size, 0), 1, 0), size);
  }
  expect_error(Status::kForeignPointer, "was not allocated by this pool",
               [&] { pool->release_on(pool->base() - 512, 0); });
}

TEST(ReleaseOn, RecordedUsesCountBesides) {
  JudgedEngine pool(8);
  const uint64_t address = pool.allocate(8 * kPage, 0);
  pool.record_stream(address, 2);
  pool.free_on(address, 1, 0);
  EXPECT_EQ(pool->pending_bytes(), 8 * kPage);
  EXPECT_EQ(pool.allocate(8 * kPage, 1), address);
  EXPECT_EQ(pool->cross_stream_waits(), 1U) << "for stream 2";
}

class ReleaseOnEachKind : public testing::TestWithParam<uint64_t> {};

TEST_P(ReleaseOnEachKind, NeitherStreamIsNeededAfterwards) {
  JudgedEngine pool(16);
  for (const size_t stream : {1, 2}) pool->declare_external(DeviceModel::handle(stream));
  std::vector<uint64_t> pages;
  for (size_t i = 0; i < 16; ++i) pages.push_back(pool.allocate(kPage, 0));
  for (const size_t i : {0, 2, 4, 6, 7, 8, 9, 10, 11}) pool.free(pages[i]);
  const uint64_t address = pool.allocate(GetParam(), 1);
  ASSERT_NE(address, 0U);
  pool.use(address, 1);
  pool.device().destroy_stream(1);
  pool.free_on(address, 2, 1);
  pool.device().destroy_stream(2);
  while (pool.device().streams().advance(1) || pool.device().streams().advance(2)) {
  }
  EXPECT_NE(pool.allocate(512, 3), 0U) << "looks which work is done";
  for (const size_t i : {1, 3, 5, 12, 13, 14, 15}) pool.free(pages[i]);
  EXPECT_NE(pool.allocate(12 * kPage, 3), 0U);
  EXPECT_EQ(pool.device().device_waits(), 0U);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ReleaseOnEachKind, testing::Values(1000, 5 * kPage, 8 * kPage));

TEST(ReleaseOn, ACaptureLeavesTheBlockToTheStreamThatFreedIt) {
  JudgedEngine pool(8);
  pool->declare_external(DeviceModel::handle(1));
  const uint64_t address = pool.allocate(8 * kPage, 0);
  pool.device().set_capturing(true);
  pool.free_on(address, 1, 0);
  pool.device().set_capturing(false);
  pool.device().destroy_stream(1);
  EXPECT_EQ(pool.allocate(8 * kPage, 0), address);
  EXPECT_EQ(pool.device().device_waits(), 1U);
}

}  // namespace
}  // namespace vramkit
