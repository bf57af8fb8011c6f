// Matrix products of 16 x 8 x 16, which a warp computes together: what each of its lanes holds.
// Lane 4 g + t has number g among the rows, and number t among the columns.
#pragma once

#include <cstdint>

namespace vramkit::ops {

/// Two neighbours in a row of the left operand for each word: rows g and g + 8, then columns + 8.
struct LeftFragment {
  uint32_t words[4];
};
/// Two neighbours in a column of the right operand for each word.
struct RightFragment {
  uint32_t words[2];
};
/// Row g, columns 2 t and 2 t + 1; then row g + 8.
struct SumFragment {
  float values[4];
};

}  // namespace vramkit::ops
