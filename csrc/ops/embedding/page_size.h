// How many rows a page has.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/embedding/table_config.h"

namespace vramkit::embedding {

// A page is at most this part of the budget, which it may leave unused.
inline constexpr uint64_t kPagesInBudget = 64;

/// The logarithm of the rows of a page: as many as fit into `page_bytes`, into a small part of the
/// budget, and as a fixed table has; at least one.
inline uint32_t page_shift(const StoreConfig& config, uint64_t page_bytes, uint64_t row_bytes) {
  uint64_t wanted = page_bytes;
  if (config.budget_bytes != 0) wanted = std::min(wanted, config.budget_bytes / kPagesInBudget);
  if (config.num_rows >= 0) {
    wanted = std::min(wanted, static_cast<uint64_t>(config.num_rows) * row_bytes);
  }
  uint32_t shift = 0;
  while ((uint64_t{2} << shift) * row_bytes <= wanted) ++shift;
  return shift;
}

}  // namespace vramkit::embedding
