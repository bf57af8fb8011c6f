#include "base/start_map.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

namespace vramkit {
namespace {

uint64_t expected_below(const std::set<uint64_t>& members, uint64_t index) {
  const auto above = members.upper_bound(index);
  return above == members.begin() ? StartMap::kNone : *std::prev(above);
}

uint64_t expected_above(const std::set<uint64_t>& members, uint64_t index) {
  const auto found = members.lower_bound(index);
  return found == members.end() ? StartMap::kNone : *found;
}

TEST(StartMap, IsEmptyAtFirst) {
  const StartMap map(1000);
  EXPECT_EQ(map.at_or_below(999), StartMap::kNone);
  EXPECT_EQ(map.at_or_above(0), StartMap::kNone);
}

TEST(StartMap, FindsAcrossEveryLevel) {
  StartMap map(uint64_t{1} << 30);
  map.insert(3);
  EXPECT_EQ(map.at_or_below((uint64_t{1} << 30) - 1), 3U);
  EXPECT_EQ(map.at_or_below(3), 3U);
  EXPECT_EQ(map.at_or_below(2), StartMap::kNone);
  EXPECT_EQ(map.at_or_above(3), 3U);
  EXPECT_EQ(map.at_or_above(4), StartMap::kNone);
  EXPECT_EQ(map.at_or_above((uint64_t{1} << 30) - 1), StartMap::kNone);
  map.insert(64 * 64 * 64);
  EXPECT_EQ(map.at_or_below(64 * 64 * 64 - 1), 3U);
  EXPECT_EQ(map.at_or_below(64 * 64 * 64), 64U * 64 * 64);
  EXPECT_EQ(map.at_or_above(4), 64U * 64 * 64);
  map.erase(3);
  EXPECT_EQ(map.at_or_below(64 * 64 * 64 - 1), StartMap::kNone);
}

TEST(StartMap, EqualsASet) {
  std::mt19937_64 random(7);
  for (const uint64_t count : {1ULL, 64ULL, 65ULL, 4096ULL, 5000ULL}) {
    StartMap map(count);
    std::set<uint64_t> members;
    for (int i = 0; i < 3000; ++i) {
      const uint64_t index = random() % count;
      if (random() % 2 == 0) {
        map.insert(index);
        members.insert(index);
      } else {
        map.erase(index);
        members.erase(index);
      }
      const uint64_t asked = random() % count;
      ASSERT_EQ(map.at_or_below(asked), expected_below(members, asked)) << "of " << count;
      ASSERT_EQ(map.at_or_above(asked), expected_above(members, asked)) << "of " << count;
    }
  }
}

}  // namespace
}  // namespace vramkit
