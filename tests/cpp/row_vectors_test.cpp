#include "ops/embedding/row_vectors.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace vramkit::embedding {
namespace {

template <class Type>
class VectorsOf : public testing::Test {};
using NarrowTypes = testing::Types<BFloat16, Float16, Int8>;
TYPED_TEST_SUITE(VectorsOf, NarrowTypes);

TYPED_TEST(VectorsOf, EveryStoredElementIsTheSameFloat) {
  using Stored = typename TypeParam::Stored;
  for (uint32_t first = 0; first < 1U << 8 * sizeof(Stored); first += kVector) {
    Stored stored[kVector];
    for (uint32_t i = 0; i < kVector; ++i) stored[i] = static_cast<Stored>(first + i);
    Floats loaded;
    load_floats<TypeParam>(stored, loaded);
    for (uint32_t i = 0; i < kVector; ++i) {
      ASSERT_EQ(bits_of(loaded[i]), bits_of(TypeParam::load(stored[i]))) << first + i;
    }
  }
}

TEST(Vectors, MayBeginAtAnyElement) {
  float values[kVector + 1];
  for (uint32_t i = 0; i <= kVector; ++i) values[i] = static_cast<float>(i);
  Floats loaded;
  load_floats<Float32>(values + 1, loaded);
  for (uint32_t i = 0; i < kVector; ++i) EXPECT_EQ(loaded[i], static_cast<float>(i + 1));
}

}  // namespace
}  // namespace vramkit::embedding
