// Rows that a CUDA device copies straight from the user's memory, by its copy engines.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "loader/gather_plan.h"

namespace vramkit {

/// More copies than this are handed to the driver by several calls, which bounds the memory for
/// their lists.
inline constexpr size_t kMostCopiesABatch = 4096;

/// Whether there is a CUDA driver that takes many copies by one call (CUDA 12.8 or later). Opens
/// the driver. Thread-safe.
bool has_batched_copies() noexcept;

/// Queues copies of row indices[k] of every piece of the plan to its destination + k * row_bytes,
/// an address in memory of `device`, on one of that device's streams. Neighbouring rows that are
/// asked for one after the other are one copy. Returns before the copies are done. The index list
/// and the plan are not needed any more then; the rows' memory and the destinations are borrowed
/// until the stream is done. The copies are not ordered among themselves, so destinations must not
/// overlap. Thread-safe.
///
/// The rows of a segment must lie in one range of memory that `host_register` registered; this is
/// not checked. A stream on which a graph is being captured is refused by the driver.
///
/// Throws kInvalidArgument, before anything is queued, for an index out of range, a wrong number of
/// destinations, one without room, the default stream (0 or 1) or an unknown device; kSystem
/// without a driver, with one that has no batched copies, and where the driver refuses. In this
/// last case some copies may be queued: wait for the stream before you use the destinations.
void copy_to_device(const GatherPlan& plan, std::span<const uint64_t> destinations,
                    std::span<const int64_t> indices, int device, uint64_t stream);

}  // namespace vramkit
