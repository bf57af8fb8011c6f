#include "loader/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "loader/mt19937.h"
#include "support.h"

namespace vramkit {
namespace {

using Entries = std::vector<int64_t>;

/// torch's loop, on the standard library's engine.
Entries expected(uint64_t seed, uint32_t count) {
  std::mt19937 random(static_cast<uint32_t>(seed));
  Entries made(count);
  std::iota(made.begin(), made.end(), 0);
  for (uint32_t i = 0; i + 1 < count; ++i) std::swap(made[i], made[i + random() % (count - i)]);
  return made;
}

Entries in_parts(uint64_t seed, uint32_t count, size_t part) {
  Permutation permutation(seed, count);
  Entries made(count, -1);
  for (size_t at = 0; at < count; at += part) {
    EXPECT_EQ(permutation.left(), count - at);
    permutation.next(std::span(made).subspan(at, std::min<size_t>(part, count - at)));
  }
  EXPECT_EQ(permutation.left(), 0U);
  return made;
}

TEST(Mt19937, DrawsAsTheStandardLibrary) {
  for (const uint32_t seed : {0U, 1U, 5489U, UINT32_MAX}) {
    std::mt19937 reference(seed);
    Mt19937 random(seed);
    for (int block = 0; block < 5; ++block) {
      random.advance();
      for (size_t i = 0; i < Mt19937::kBlock; ++i) {
        ASSERT_EQ(random[i], reference()) << "number " << i << " of block " << block;
      }
    }
  }
}

TEST(Permutation, EqualsAPlainLoop) {
  for (const uint32_t count : {0U, 1U, 2U, 3U, 623U, 624U, 625U, 1248U, 65'536U, 700'001U}) {
    for (const uint64_t seed : {uint64_t{0}, uint64_t{7}, UINT64_MAX, uint64_t{7} << 32 | 9}) {
      EXPECT_TRUE(in_parts(seed, count, count + 1) == expected(seed, count))
          << count << " entries, seed " << seed;
    }
  }
}

TEST(Permutation, PartsMayHaveAnySize) {
  for (const size_t part : {1U, 7U, 623U, 624U, 625U, 4096U}) {
    EXPECT_TRUE(in_parts(3, 10'000, part) == expected(3, 10'000)) << "parts of " << part;
  }
  const uint64_t seed = stress_seed();
  std::mt19937 random(static_cast<uint32_t>(seed));
  for (int round = 0; round < 50; ++round) {
    const uint32_t count = static_cast<uint32_t>(random() % 20'000);
    const size_t part = 1 + random() % 3000;
    ASSERT_TRUE(in_parts(seed, count, part) == expected(seed, count)) << replay_with(seed);
  }
}

TEST(Permutation, RefusesMoreThanIsLeft) {
  Permutation permutation(1, 10);
  Entries made(11, -1);
  const auto ask = [&](size_t entries) { permutation.next(std::span(made).first(entries)); };
  expect_error(Status::kInvalidArgument, "has 10 entries left, got a request for 11",
               [&] { ask(11); });
  EXPECT_EQ(made, Entries(11, -1));
  ask(0);
  ask(10);
  expect_error(Status::kInvalidArgument, "has 0 entries left, got a request for 1",
               [&] { ask(1); });
  made.pop_back();
  EXPECT_EQ(made, expected(1, 10));
}

TEST(Permutation, TheLongestOneTakesMemoryAsItIsNeeded) {
  Permutation permutation(1, Permutation::kMostEntries);
  Entries first(3);
  permutation.next(first);
  std::mt19937 random(1);
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(first[i], static_cast<int64_t>(i + random() % (Permutation::kMostEntries - i)));
  }
  expect_error(Status::kInvalidArgument,
               "a permutation has at most 214748363 entries, got 214748364",
               [] { Permutation too_long(1, Permutation::kMostEntries + 1); });
}

}  // namespace
}  // namespace vramkit
