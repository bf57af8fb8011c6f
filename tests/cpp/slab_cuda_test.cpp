#include "backend/slab_cuda.h"

#include <gtest/gtest.h>

#include "fake_driver.h"
#include "support.h"

namespace vramkit {
namespace {

TEST(SlabCuda, HoldsWhatItWasGivenAndGivesNothingBack) {
  FakeGpu::fresh();
  Engine pool({"cuda:0@1099511627776", "test", 20 * 2 * kMiB, 2 * kMiB});
  EXPECT_EQ(pool.held_bytes(), 40 * kMiB);
  EXPECT_EQ(pool.pages().backed_count(), 20U);
  const uint64_t address = pool.allocate(30 * kMiB, 0, 0);
  EXPECT_EQ(address, uint64_t{1} << 40);
  pool.release(address);
  EXPECT_EQ(pool.trim(), 0U);
  EXPECT_EQ(pool.held_bytes(), 40 * kMiB);
  expect_error(Status::kInvalidArgument, "cannot grow", [&] { pool.resize(50 * kMiB); });
  pool.check_valid();
}

}  // namespace
}  // namespace vramkit
