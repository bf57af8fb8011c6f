// What the pools of a device hold, in the words of PyTorch's statistics and snapshots.
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>

#include <array>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bind/torch/adapter_common.h"
#include "bind/torch/adapter_cuda_history.h"

namespace vramkit::adapter {

using DeviceStats = c10::CachingDeviceAllocator::DeviceStats;
using SegmentInfo = c10::CachingDeviceAllocator::SegmentInfo;

std::vector<vramkit_pool*> pools_of(c10::DeviceIndex device);

/// The device of an open pool: a search, for paths that are taken while somebody records.
c10::DeviceIndex device_of(vramkit_pool* pool);

/// Adds the pools' numbers to native's. Thread-safe.
class PoolStatistics {
 public:
  /// Peaks are added too: an upper bound, as the two were not reached at the same time.
  void add_to(DeviceStats& stats, c10::DeviceIndex device) const;
  void reset_accumulated(c10::DeviceIndex device);

 private:
  mutable std::mutex mutex_;
  std::array<vramkit_totals, VRAMKIT_MAX_DEVICES> at_reset_{};
};

/// Appends the pools' blocks by address. PyTorch wants a segment's blocks to adjoin: a smaller gap
/// appears as an inactive block; one of whole pages (aliased by stitched blocks, or given back to
/// the driver) ends the segment. Each stitched block is a segment of its own.
void append_segments(std::vector<SegmentInfo>& segments, c10::DeviceIndex device,
                     const History& history);

/// Device memory by holder, in bytes.
struct DeviceMemory {
  struct Whole {
    uint64_t free;
    uint64_t total;
  };
  uint64_t native_reserved = 0;
  uint64_t native_allocated = 0;
  uint64_t other_pools = 0;
  uint64_t all_pools = 0;
  std::optional<Whole> whole;  // of the device; not known while a graph is captured
};

DeviceMemory measure_memory(c10::cuda::CUDACachingAllocator::CUDAAllocator& native,
                            c10::DeviceIndex device, bool capturing);

/// For the text of an OutOfMemoryError.
std::string describe_outside(const DeviceMemory& memory, c10::DeviceIndex device);

}  // namespace vramkit::adapter
