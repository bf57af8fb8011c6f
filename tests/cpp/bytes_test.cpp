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

TEST(Bytes, PrintsSizesInTheUnitThatFits) {
  EXPECT_EQ(mib(0), "0 B");
  EXPECT_EQ(mib(1023), "1023 B");
  EXPECT_EQ(mib(4 * kKiB), "4.0 KiB");
  EXPECT_EQ(mib(12 * kMiB), "12.0 MiB");
  EXPECT_EQ(mib(kMiB - 1), "1.0 MiB");
  EXPECT_EQ(mib(kGiB + kGiB / 4), "1.3 GiB") << "halves go up";
  EXPECT_EQ(mib(~uint64_t{0}), "16.0 EiB");
}

TEST(Bytes, TellsSizesApartThatLookTheSame) {
  EXPECT_EQ(mib_apart(kMiB + 1, 2 * kMiB), "1.0 MiB");
  EXPECT_EQ(mib_apart(kMiB, kMiB), "1.0 MiB");
  EXPECT_EQ(mib_apart(kMiB + 1, kMiB), "1.0 MiB (1,048,577 bytes)");
}

TEST(Bytes, AdvisesEnough) {
  EXPECT_EQ(advised_size(1), "1B");
  EXPECT_EQ(advised_size(2 * kMiB), "2MiB");
  EXPECT_EQ(advised_size(2 * kMiB + 1), "2049KiB");
  EXPECT_EQ(advised_size(~uint64_t{0}), "16EiB");
}

TEST(Bytes, CountsOneAndMany) {
  EXPECT_EQ(counted(0, "block"), "0 blocks");
  EXPECT_EQ(counted(1, "block"), "1 block");
  EXPECT_EQ(counted(1200, "block"), "1,200 blocks");
  EXPECT_EQ(counted(1234567, "byte"), "1,234,567 bytes");
}

}  // namespace
}  // namespace vramkit
