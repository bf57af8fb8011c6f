#include "loader/stream_copy.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <random>
#include <vector>

namespace vramkit {
namespace {

using Bytes = std::vector<unsigned char>;

Bytes random_bytes(std::mt19937& random, size_t count) {
  Bytes made(count);
  for (unsigned char& byte : made) byte = static_cast<unsigned char>(random());
  return made;
}

/// Copies with `copy` between both alignments and expects what a plain loop makes of it.
template <typename Copy>
void expect_copied(std::mt19937& random, size_t bytes, size_t to, size_t from, Copy copy) {
  constexpr size_t kAround = 64;
  const Bytes source = random_bytes(random, from + bytes);
  Bytes copied = random_bytes(random, to + bytes + kAround);
  Bytes expected = copied;
  for (size_t i = 0; i < bytes; ++i) expected[to + i] = source[from + i];
  copy(copied.data() + to, source.data() + from, bytes);
  ASSERT_EQ(copied, expected) << bytes << " bytes, to +" << to << ", from +" << from;
}

TEST(StreamCopy, EqualsAPlainLoop) {
  std::mt19937 random(1);
  for (int i = 0; i < 500; ++i) {
    const size_t limit = i % 2 == 0 ? 2 * kStreamMinBytes : 300;
    expect_copied(random, random() % limit, random() % 70, random() % 70, stream_copy);
  }
}

TEST(StreamCopy, UnfencedTakesAnySize) {
  std::mt19937 random(2);
  const auto copy = [](void* to, const void* from, size_t bytes) {
    stream_unfenced(to, from, bytes);
    stream_fence();
  };
  for (size_t bytes = 1; bytes < 400; ++bytes) {
    expect_copied(random, bytes, random() % 70, random() % 70, copy);
  }
}

TEST(StreamCopy, EdgesOfTheThreshold) {
  std::mt19937 random(3);
  for (const size_t bytes : {kStreamMinBytes - 1, kStreamMinBytes, kStreamMinBytes + 1}) {
    for (const size_t shift : {0, 1, 31, 32, 63}) {
      expect_copied(random, bytes, shift, 0, stream_copy);
      expect_copied(random, bytes, 0, shift, stream_copy);
    }
  }
}

TEST(StreamCopy, NothingFromNowhere) { stream_copy(nullptr, nullptr, 0); }

}  // namespace
}  // namespace vramkit
