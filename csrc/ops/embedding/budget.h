// What a table says whose budget does not suffice.
#pragma once

#include <cstdint>

#include "base/bytes.h"
#include "base/error.h"
#include "ops/embedding/table_config.h"

namespace vramkit::embedding {

/// Throws Error(kInvalidArgument): a budget without room for `bytes`, which one row takes.
[[noreturn]] inline void throw_small_budget(const StoreConfig& config, uint64_t bytes) {
  throw_error(Status::kInvalidArgument,
              "budget: one row of %u values takes %s with its index, got a budget of %s; raise it",
              config.layout.dim, mib(bytes).c_str(), mib(config.budget_bytes).c_str());
}

/// Throws Error(kOutOfMemory) where a table of at most `most` rows, which has `size`, cannot hold
/// the `found` and `fresh` distinct rows of a batch, of which the latter are not there yet.
inline void check_fits(const StoreConfig& config, uint64_t most, uint64_t size, uint64_t found,
                       uint64_t fresh) {
  uint64_t wanted = found + fresh;
  if (wanted <= most && !config.evicts()) wanted = size + fresh;
  if (wanted <= most) return;
  throw_error(Status::kOutOfMemory,
              "the table is full: %s are needed, the budget of %s holds %s; raise budget, or "
              "%slook up fewer distinct ids at once than it holds",
              counted(wanted, "row").c_str(), mib(config.budget_bytes).c_str(),
              counted(most, "row").c_str(),
              config.evicts() ? "" : "choose when_full='evict_lru' and ");
}

}  // namespace vramkit::embedding
