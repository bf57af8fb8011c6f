#include "ops/embedding/row_codec.h"

#include <gtest/gtest.h>

namespace vramkit::embedding {
namespace {

TEST(Int8Rows, KeepTheirScaleWhileItFits) {
  char row[4];
  float scale = 0;
  const float values[] = {1, -0.5F, 0.25F, 0};
  encode_stochastic<Int8>(row, scale, 4, values, 1);
  EXPECT_FLOAT_EQ(scale, 1.0625F / 127);
  const float first = scale;
  float back[4];
  decode<Int8>(row, scale, 4, back);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(back[i], values[i], scale);
  encode_stochastic<Int8>(row, scale, 4, back, 2);
  EXPECT_EQ(scale, first);
  float again[4];
  decode<Int8>(row, scale, 4, again);
  for (int i = 0; i < 4; ++i) EXPECT_NEAR(again[i], back[i], scale * 1e-3F);
  const float zeros[4] = {};
  encode_stochastic<Int8>(row, scale, 4, zeros, 3);
  decode<Int8>(row, scale, 4, back);
  EXPECT_EQ(back[0], 0);
}

}  // namespace
}  // namespace vramkit::embedding
