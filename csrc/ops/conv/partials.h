// Sums over the blocks of a weight gradient, always in the same order.
#pragma once

#include <cstdint>

#include "ops/on_both.h"

namespace vramkit::ops {

// The second pass divides the blocks among so many threads for each weight.
inline constexpr int kPartialThreads = 32;

/// The sum over every kPartialThreads-th block of what is at `position` in each.
VRAMKIT_ON_BOTH inline float add_blocks(const float* partials, int64_t block_size, int blocks,
                                        int64_t position, int thread) {
  float sum = 0;
  for (int block = thread; block < blocks; block += kPartialThreads) {
    sum += partials[block * block_size + position];
  }
  return sum;
}

}  // namespace vramkit::ops
