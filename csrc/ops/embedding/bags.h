// Batches of ids, in bags or not, as lookups get them. Shared by CPU and CUDA.
#pragma once

#include <cstdint>

#include "ops/on_both.h"

namespace vramkit::embedding {

/// kNone: one row for each id.
enum class Mode : int32_t { kNone = 0, kSum = 1, kMean = 2, kMax = 3 };

/// Ids in bags: bag b has the ids begin_of(b) to end_of(b) - 1. Padding ids belong to none.
struct Bags {
  const int64_t* ids;
  int64_t positions;
  const int64_t* bounds;  // bags + 1, or as many as there are bags; null: `width` ids in each
  int64_t bags;           // positions for kNone
  int64_t width;
  Mode mode;
  bool is_open;          // there is no last bound: the last bag ends with the ids
  const float* weights;  // a factor for each id, or null

  VRAMKIT_ON_BOTH int64_t begin_of(int64_t bag) const {
    return bounds == nullptr ? bag * width : bounds[bag];
  }
  VRAMKIT_ON_BOTH int64_t end_of(int64_t bag) const {
    if (bounds == nullptr) return (bag + 1) * width;
    return is_open && bag + 1 == bags ? positions : bounds[bag + 1];
  }
};

/// Rows are scaled to a norm of at most `most`, if that is positive.
struct NormLimit {
  double most;
  double degree;
};

}  // namespace vramkit::embedding
