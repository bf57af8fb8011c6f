// What the pool counts, in bytes and in numbers of events.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

#include "base/bytes.h"

namespace vramkit {

/// One row for each power of two of requested bytes; the first takes all up to 512.
struct SizeClass {
  uint64_t live_blocks = 0;
  uint64_t live_bytes = 0;
  uint64_t allocations = 0;
  uint64_t frees = 0;
};
inline constexpr size_t kSizeClasses = 40;

/// What has happened since the pool was made; no number ever falls.
struct Totals {
  uint64_t allocations = 0;
  uint64_t frees = 0;
  uint64_t requested_bytes = 0;  // of all requests that were served
  uint64_t freed_requested_bytes = 0;
  uint64_t allocated_bytes = 0;  // with rounding
  uint64_t freed_allocated_bytes = 0;
  uint64_t shortages = 0;  // requests that nobody served

  Totals& operator+=(const Totals& other) {
    allocations += other.allocations;
    frees += other.frees;
    requested_bytes += other.requested_bytes;
    freed_requested_bytes += other.freed_requested_bytes;
    allocated_bytes += other.allocated_bytes;
    freed_allocated_bytes += other.freed_allocated_bytes;
    shortages += other.shortages;
    return *this;
  }
};

/// Statistics only: nothing that steers placement reads them, because a user may reset the peaks.
/// The pool's lock protects them.
struct Counters {
  uint64_t live_bytes = 0;  // as requested
  uint64_t peak_live_bytes = 0;
  uint64_t allocated_bytes = 0;  // with rounding
  uint64_t peak_allocated_bytes = 0;
  uint64_t ever_requested_bytes = 0;
  uint64_t ever_allocated_bytes = 0;
  uint64_t live_blocks = 0;
  uint64_t peak_live_blocks = 0;
  uint64_t allocations = 0;
  uint64_t frees = 0;
  uint64_t failures = 0;
  uint64_t stitched_requests = 0;
  uint64_t stitched_pages = 0;
  uint64_t alias_hits = 0;
  uint64_t overflow_allocations = 0;
  uint64_t overflow_bytes = 0;
  std::array<SizeClass, kSizeClasses> classes{};

  void on_allocate(uint64_t requested, uint64_t size) {
    live_bytes += requested;
    peak_live_bytes = std::max(peak_live_bytes, live_bytes);
    allocated_bytes += size;
    ever_requested_bytes += requested;
    ever_allocated_bytes += size;
    peak_allocated_bytes = std::max(peak_allocated_bytes, allocated_bytes);
    peak_live_blocks = std::max(peak_live_blocks, ++live_blocks);
    ++allocations;
    SizeClass& row = classes[class_of(requested)];
    ++row.live_blocks;
    ++row.allocations;
    row.live_bytes += requested;
  }

  void on_free(uint64_t requested, uint64_t size) {
    live_bytes -= requested;
    allocated_bytes -= size;
    --live_blocks;
    ++frees;
    SizeClass& row = classes[class_of(requested)];
    --row.live_blocks;
    ++row.frees;
    row.live_bytes -= requested;
  }

  Totals totals() const {
    return {allocations,
            frees,
            ever_requested_bytes,
            ever_requested_bytes - live_bytes,
            ever_allocated_bytes,
            ever_allocated_bytes - allocated_bytes,
            failures - overflow_allocations};
  }

  void reset_peaks() {
    peak_live_bytes = live_bytes;
    peak_allocated_bytes = allocated_bytes;
    peak_live_blocks = live_blocks;
  }

  static size_t class_of(uint64_t requested) {
    const auto row = static_cast<size_t>(std::bit_width((requested - 1) / kAlignment));
    return std::min(row, kSizeClasses - 1);
  }
};

}  // namespace vramkit
