#include "backend/vmm_cuda.h"

#include <gtest/gtest.h>

#include "bind/c/vramkit.h"
#include "fake_driver.h"
#include "pool/registry.h"
#include "support.h"

namespace vramkit {
namespace {

constexpr uint64_t kPage = FakeGpu::kPage;

class VmmCuda : public testing::Test {
 protected:
  FakeGpu& gpu_ = FakeGpu::fresh();

  Engine engine(uint64_t pages) { return Engine({"cuda:0", "test", pages * kPage, kPage}); }
  /// Without the thread that maps in the background.
  static bool map_next(Engine& pool, uint64_t pages) {
    const std::shared_ptr<BackgroundMapping> mapping = pool.next_background_mapping(pages);
    if (!mapping) return false;
    EXPECT_LE(mapping->run().count, pages);
    mapping->map();
    pool.finish_background_mapping();
    return true;
  }
  static void map_all(Engine& pool) {
    while (map_next(pool, 16)) {
    }
  }
};

TEST_F(VmmCuda, TakesTheWholeCapacityAndMapsItLater) {
  {
    Engine pool = engine(100);
    EXPECT_EQ(gpu_.handles.size(), 100U);
    EXPECT_EQ(gpu_.mappings.size(), 0U);
    EXPECT_EQ(pool.held_bytes(), 100 * kPage);
    map_all(pool);
    EXPECT_EQ(gpu_.mappings.size(), 100U);
    expect_error(Status::kOutOfMemory, "has no memory", [&] { engine(1); });
  }
  EXPECT_TRUE(gpu_.handles.empty());
  EXPECT_TRUE(gpu_.mappings.empty());
}

TEST_F(VmmCuda, ShrinkingReleasesWhatWasNeverMapped) {
  Engine pool = engine(100);
  const uint64_t address = pool.allocate(kPage, 0, 0);
  pool.resize(10 * kPage);
  EXPECT_EQ(gpu_.handles.size(), 10U);
  pool.resize(100 * kPage);
  EXPECT_EQ(gpu_.handles.size(), 100U);
  pool.release(address);
  pool.check_valid();
}

TEST_F(VmmCuda, TrimReleasesWhatWasNeverMapped) {
  Engine pool = engine(100);
  const uint64_t address = pool.allocate(5 * kPage, 0, 0);
  EXPECT_EQ(pool.trim(), 95 * kPage);
  EXPECT_EQ(gpu_.handles.size(), 5U);
  EXPECT_EQ(pool.held_bytes(), 5 * kPage);
  EXPECT_EQ(pool.trim(), 0U);
  EXPECT_NE(pool.allocate(95 * kPage, 0, 0), 0U);
  EXPECT_EQ(gpu_.handles.size(), 100U);
  pool.release(address);
  pool.check_valid();
}

TEST_F(VmmCuda, WhatWasTrimmedIsNotTakenAgainInTheBackground) {
  Engine pool = engine(100);
  EXPECT_TRUE(map_next(pool, 30));
  EXPECT_EQ(pool.trim(), 100 * kPage);
  map_all(pool);
  EXPECT_TRUE(gpu_.handles.empty());
  EXPECT_TRUE(gpu_.mappings.empty());
}

TEST_F(VmmCuda, ARequestThatFailsTakesNothingAndLosesNothing) {
  Engine pool = engine(100);
  EXPECT_TRUE(map_next(pool, 10));
  EXPECT_EQ(pool.trim(), 100 * kPage);
  gpu_.pages = 50;  // somebody else has the rest now
  const uint64_t address = pool.allocate(10 * kPage, 0, 0);
  EXPECT_EQ(gpu_.handles.size(), 10U);
  expect_error(Status::kOutOfMemory, "has no memory", [&] { pool.allocate(60 * kPage, 0, 0); });
  EXPECT_EQ(gpu_.handles.size(), 10U);
  pool.check_valid();
  pool.release(address);
}

TEST_F(VmmCuda, AFailedCommitKeepsWhatWasCommittedBefore) {
  CudaVmmBackend backend(0);
  backend.reserve({kPage, 200, 10});
  backend.create_physical({0, 90});
  expect_error(Status::kOutOfMemory, "has no memory", [&] { backend.create_physical({0, 150}); });
  EXPECT_EQ(gpu_.handles.size(), 90U);
  EXPECT_EQ(backend.release_physical({0, 150}), 90U);
}

TEST_F(VmmCuda, PeersAreGrantedWhatIsMappedAndWhatWillBe) {
  Engine pool = engine(20);
  map_next(pool, 5);
  pool.add_peer(1);
  map_all(pool);
  EXPECT_EQ(gpu_.mappings.size(), 20U);
  for (const auto& [address, mapping] : gpu_.mappings) {
    EXPECT_EQ(mapping.accessible_from, (std::set<int>{0, 1}));
  }
}

TEST_F(VmmCuda, APeerThatCannotBeGrantedHarmsNothing) {
  gpu_.bad_peers = {2};
  Engine pool = engine(20);
  map_next(pool, 5);
  expect_error(Status::kSystem, "cuMemSetAccess failed", [&] { pool.add_peer(2); });
  map_all(pool);
  EXPECT_NE(pool.allocate(20 * kPage, 0, 0), 0U);
}

TEST_F(VmmCuda, PoolsThatAreMadeLaterAreGrantedToPeersToo) {
  EXPECT_EQ(vramkit_device_add_peer(0, 3), VRAMKIT_OK);
  Pool* pool = Registry::instance().create({{"cuda:0", "test", 20 * kPage, kPage}, false, false});
  uint64_t address = 0;
  ASSERT_EQ(pool->allocate(20 * kPage, 0, 0, &address), Status::kOk);
  pool->inspect([this](Engine&) {  // the background is not in the driver
    for (const auto& [at, mapping] : gpu_.mappings) {
      EXPECT_EQ(mapping.accessible_from, (std::set<int>{0, 3}));
    }
  });
  pool->release_block(address);
  pool->close();
}

TEST_F(VmmCuda, PeersThatAreInUseAreGrantedTheFirstPoolToo) {
  gpu_.peers_in_use = {1, 2, 4};
  gpu_.distant_peers = {1};
  gpu_.bad_peers = {4};
  testing::internal::CaptureStderr();
  Pool* pool = Registry::instance().create({{"cuda:0", "test", 20 * kPage, kPage}, false, false});
  EXPECT_NE(testing::internal::GetCapturedStderr().find("cuda:4 cannot access"), std::string::npos);
  uint64_t address = 0;
  ASSERT_EQ(pool->allocate(20 * kPage, 0, 0, &address), Status::kOk);
  pool->inspect([this](Engine&) {  // the background is not in the driver
    EXPECT_EQ(gpu_.mappings.size(), 20U);
    for (const auto& [at, mapping] : gpu_.mappings) {
      EXPECT_TRUE(mapping.accessible_from.contains(2));
      EXPECT_FALSE(mapping.accessible_from.contains(1));
      EXPECT_FALSE(mapping.accessible_from.contains(4));
    }
  });
  pool->release_block(address);
  pool->close();
}

TEST_F(VmmCuda, AnEventOnACapturedStreamIsNotKept) {
  Engine pool = engine(20);
  const uint64_t address = pool.allocate(20 * kPage, 8, 0);
  pool.release(address);
  gpu_.capturing = {8};  // nobody has said so
  expect_error(Status::kBusy, "is being captured", [&] { pool.allocate(20 * kPage, 9, 0); });
  expect_error(Status::kBusy, "is being captured", [&] { pool.trim(); });
  gpu_.capturing = {9};
  expect_error(Status::kBusy, "is being captured", [&] { pool.allocate(20 * kPage, 9, 0); });
  gpu_.capturing.clear();
  pool.release(pool.allocate(20 * kPage, 9, 0));
  EXPECT_EQ(pool.trim(), 20 * kPage);
  pool.check_valid();
}

TEST_F(VmmCuda, TheDeviceIsWaitedForWhereAStreamIsGone) {
  Engine pool = engine(20);
  pool.declare_external(8);
  const uint64_t address = pool.allocate(20 * kPage, 8, 0);
  gpu_.destroyed = {8};
  pool.release(address);
  gpu_.capturing = {7};  // nobody has said so
  expect_error(Status::kBusy, "cuda:0 cannot be waited for while a CUDA graph is being captured",
               [&] { pool.allocate(20 * kPage, 9, 0); });
  gpu_.capturing.clear();
  pool.release(pool.allocate(20 * kPage, 9, 0));
  EXPECT_EQ(gpu_.device_waits, 2U);
  EXPECT_EQ(pool.trim(), 20 * kPage);
  EXPECT_EQ(gpu_.device_waits, 2U);
}

TEST_F(VmmCuda, ADestructorSurvivesADeviceThatIsGone) {
  {
    Engine pool = engine(10);
    gpu_.context_gone = true;
  }
  gpu_.handles.clear();
}

TEST_F(VmmCuda, APoolAbandonedDuringACaptureGoesAfterIt) {
  Pool* pool = Registry::instance().create({{"cuda:0", "test", 20 * kPage, kPage}, false, false});
  uint64_t address = 0;
  ASSERT_EQ(pool->allocate(kPage, 8, 0, &address), Status::kOk);
  vramkit_capture_begin(0, 8);
  gpu_.capturing = {8};
  pool->orphan();
  pool->release_block(address);
  EXPECT_FALSE(gpu_.handles.empty());
  gpu_.capturing.clear();
  vramkit_capture_end(0, 8);
  EXPECT_TRUE(gpu_.handles.empty());
}

}  // namespace
}  // namespace vramkit
