#include "pool/counters.h"

#include <gtest/gtest.h>

namespace vramkit {
namespace {

TEST(Counters, SortBySizeClass) {
  EXPECT_EQ(Counters::class_of(1), 0U);
  EXPECT_EQ(Counters::class_of(512), 0U);
  EXPECT_EQ(Counters::class_of(513), 1U);
  EXPECT_EQ(Counters::class_of(1024), 1U);
  EXPECT_EQ(Counters::class_of(1025), 2U);
  EXPECT_EQ(Counters::class_of(~uint64_t{0}), kSizeClasses - 1);
}

TEST(Counters, FollowLiveAndPeak) {
  Counters counters;
  counters.on_allocate(1000, 1024);
  counters.on_allocate(100, 512);
  counters.on_free(1000, 1024);
  EXPECT_EQ(counters.live_bytes, 100U);
  EXPECT_EQ(counters.allocated_bytes, 512U);
  EXPECT_EQ(counters.peak_live_bytes, 1100U);
  EXPECT_EQ(counters.peak_allocated_bytes, 1536U);
  EXPECT_EQ(counters.live_blocks, 1U);
  EXPECT_EQ(counters.classes[1].frees, 1U);
  EXPECT_EQ(counters.classes[0].live_bytes, 100U);
  counters.reset_peaks();
  EXPECT_EQ(counters.peak_live_bytes, 100U);
  EXPECT_EQ(counters.peak_allocated_bytes, 512U);
}

}  // namespace
}  // namespace vramkit
