#include "base/bytes.h"

#include <gtest/gtest.h>

namespace vramkit {
namespace {

TEST(Bytes, RoundsToThePowerOfTwo) {
  EXPECT_EQ(align_down(1023, 512), 512U);
  EXPECT_EQ(align_up(1023, 512), 1024U);
  EXPECT_EQ(align_up(1024, 512), 1024U);
  EXPECT_EQ(align_up(0, kAlignment), 0U);
}

TEST(Bytes, DividesUpwards) {
  EXPECT_EQ(ceil_div(0, 7), 0U);
  EXPECT_EQ(ceil_div(14, 7), 2U);
  EXPECT_EQ(ceil_div(15, 7), 3U);
}

TEST(Bytes, PrintsMebibytes) {
  EXPECT_EQ(mib(12 * kMiB), "12.00 MiB");
  EXPECT_EQ(mib(kGiB + kMiB / 2), "1024.50 MiB");
}

}  // namespace
}  // namespace vramkit
