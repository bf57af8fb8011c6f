// Batches of ids, in bags or not, as lookups get them. Shared by CPU and CUDA.
#pragma once

#include <cstdint>

namespace vramkit::embedding {

/// kNone: one row for each id.
enum class Mode : int32_t { kNone = 0, kSum = 1, kMean = 2, kMax = 3 };

/// Ids in bags: bag b has the ids bounds[b] to bounds[b + 1] - 1. Padding ids belong to none.
struct Bags {
  const int64_t* ids;
  int64_t positions;
  const int64_t* bounds;  // bags + 1; null for kNone
  int64_t bags;           // positions for kNone
  Mode mode;
  const float* weights;  // a factor for each id, or null
};

/// Rows are scaled to a norm of at most `most`, if that is positive.
struct NormLimit {
  double most;
  double degree;
};

}  // namespace vramkit::embedding
