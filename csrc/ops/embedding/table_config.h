// What a table is built with, what it keeps of each row, and what it tells of itself.
#pragma once

#include <cstdint>
#include <optional>

#include "ops/embedding/rows.h"

namespace vramkit::embedding {

/// No slot: the key has no row.
inline constexpr uint32_t kMissing = UINT32_MAX;

enum class WhenFull : int32_t { kGrow = 0, kError = 1, kEvictLru = 2, kEvictLfu = 3, kSpill = 4 };

/// Where the rows of a table on a CUDA device are: kCached has the rows used last on the device.
enum class Placement : int32_t { kDevice = 0, kHost = 1, kCached = 2 };

struct StoreConfig {
  RowLayout layout{};
  int64_t num_rows = -1;      // ids are 0 to num_rows - 1; any int64 where it is negative
  uint64_t budget_bytes = 0;  // 0: none
  WhenFull when_full = WhenFull::kGrow;
  Placement placement = Placement::kDevice;
  uint64_t seed = 0;
  float deviation = 1;      // of the initial values
  float initial_state = 0;  // Adagrad's sums begin with it
  std::optional<int64_t> padding{};

  bool evicts() const {
    return when_full == WhenFull::kEvictLru || when_full == WhenFull::kEvictLfu;
  }
  /// The budget is the device's; the rows that it has no room for are in host memory.
  bool has_tiers() const {
    return placement == Placement::kCached || when_full == WhenFull::kSpill;
  }
};

/// What a table is on the CPU, whose rows are all in host memory.
inline StoreConfig without_tiers(StoreConfig config) {
  if (config.has_tiers()) {
    config.budget_bytes = 0;
    config.when_full = WhenFull::kGrow;
  }
  config.placement = Placement::kDevice;
  return config;
}

/// When a slot was last changed and used, in calls that changed the table, and how often it was.
struct Stamps {
  uint32_t changed;
  uint32_t used;
  uint32_t frequency;
};

struct StoreFacts {
  int64_t rows = 0;
  int64_t bytes = 0;
  int64_t host_bytes = 0;  // of these
  int64_t capacity = -1;
  int64_t evictions = 0;
};

}  // namespace vramkit::embedding
