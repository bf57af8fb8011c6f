#include "ops/embedding/rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace vramkit::embedding {
namespace {

template <class Type>
class RowTypes : public testing::Test {};
using Halves = testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(RowTypes, Halves);

TYPED_TEST(RowTypes, StoredNumbersStayThemselves) {
  for (uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const auto stored = static_cast<uint16_t>(bits);
    const float value = TypeParam::load(stored);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(TypeParam::load(TypeParam::nearest(value))));
      continue;
    }
    ASSERT_EQ(TypeParam::nearest(value), stored) << value;
    ASSERT_EQ(TypeParam::stochastic(value, 0), stored) << value;
    ASSERT_EQ(TypeParam::stochastic(value, UINT32_MAX), stored) << value;
  }
}

TYPED_TEST(RowTypes, StochasticRoundingHasTheValueAsItsMean) {
  for (const float value : {1.001F, -3.3337F, 6.1e-5F, 3.1e-6F, 1e-7F}) {
    double sum = 0;
    constexpr int kDraws = 20'000;
    for (int i = 0; i < kDraws; ++i) {
      const auto random = static_cast<uint32_t>(mix(static_cast<uint64_t>(i)) >> 32);
      sum += TypeParam::load(TypeParam::stochastic(value, random));
    }
    const float step = std::abs(TypeParam::load(TypeParam::nearest(value * 1.01F)) - value) + 6e-8F;
    EXPECT_NEAR(sum / kDraws, value, 0.02 * step + 0.0002 * std::abs(value)) << value;
  }
}

TYPED_TEST(RowTypes, FiniteValuesStayFiniteAndOthersDoNot) {
  const float largest = std::numeric_limits<float>::max();
  EXPECT_TRUE(std::isfinite(TypeParam::load(TypeParam::stochastic(largest, UINT32_MAX))));
  EXPECT_TRUE(std::isfinite(TypeParam::load(TypeParam::stochastic(-largest, UINT32_MAX))));
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(TypeParam::load(TypeParam::stochastic(-infinity, 7)), -infinity);
  EXPECT_TRUE(std::isnan(TypeParam::load(TypeParam::stochastic(std::nanf(""), 7))));
}

TEST(RowLayout, TakesTheDocumentedBytes) {
  EXPECT_EQ((RowLayout{RowType::kInt8, Rule::kRowwiseAdagrad, 128}.stride_bytes()), 128U);
  EXPECT_EQ((RowLayout{RowType::kBFloat16, Rule::kRowwiseAdagrad, 128}.stride_bytes()), 256U);
  EXPECT_EQ((RowLayout{RowType::kFloat32, Rule::kAdam, 128}.stride_bytes()), 1536U);
}

}  // namespace
}  // namespace vramkit::embedding
