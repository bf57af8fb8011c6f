#include "base/lazy_array.h"

#include <gtest/gtest.h>

namespace vramkit {
namespace {

TEST(LazyArray, IsZeroAndTakesNoMemoryWhereUntouched) {
  LazyArray<uint64_t> array(size_t{1} << 31);  // 16 GiB
  array[(size_t{1} << 31) - 1] = 5;
  EXPECT_EQ(array[0], 0U);
  EXPECT_EQ(array[(size_t{1} << 31) - 1], 5U);
}

TEST(LazyArray, CanBeEmpty) {
  const LazyArray<int> array(0);
  EXPECT_EQ(array[0], 0);
}

}  // namespace
}  // namespace vramkit
