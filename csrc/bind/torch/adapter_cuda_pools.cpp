#include "bind/torch/adapter_cuda_pools.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>

namespace vramkit::adapter {
namespace {

using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;
using c10::CachingDeviceAllocator::BlockInfo;

constexpr std::array kRows = {static_cast<size_t>(StatType::AGGREGATE),
                              static_cast<size_t>(StatType::LARGE_POOL)};

void add(StatArray& stats, uint64_t current, uint64_t peak) {
  for (const size_t row : kRows) {
    stats[row].current += static_cast<int64_t>(current);
    stats[row].peak += static_cast<int64_t>(std::max(peak, current));
  }
}

void add_totals(StatArray& stats, uint64_t allocated, uint64_t freed) {
  for (const size_t row : kRows) {
    stats[row].allocated += static_cast<int64_t>(allocated);
    stats[row].freed += static_cast<int64_t>(freed);
  }
}

vramkit_totals totals_of(c10::DeviceIndex device) {
  vramkit_totals totals{};
  const vramkit_status status = core->device_totals(device, &totals);
  return status == VRAMKIT_OK ? totals : vramkit_totals{};
}

std::vector<vramkit_block> blocks_of(vramkit_pool* pool) {
  std::vector<vramkit_block> blocks;
  uint64_t count = 0;
  do {  // other threads may allocate in between
    blocks.resize(count);
    if (core->snapshot(pool, blocks.data(), blocks.size(), &count) != VRAMKIT_OK) return {};
  } while (count > blocks.size());
  blocks.resize(count);
  return blocks;
}

SegmentInfo segment_at(c10::DeviceIndex device, uint64_t address) {
  SegmentInfo segment;
  segment.device = device;
  segment.address = address;
  segment.is_large = true;
  segment.is_expandable = true;
  return segment;
}

uint64_t end_of(const SegmentInfo& segment) { return segment.address + segment.total_size; }

void append_block(SegmentInfo& segment, const vramkit_block& block, const History& history) {
  if (block.address > end_of(segment)) {
    BlockInfo gap;
    gap.size = block.address - end_of(segment);
    segment.blocks.push_back(gap);
  }
  BlockInfo info;
  info.size = block.size_bytes;
  info.requested_size = block.requested_bytes;
  info.allocated = block.state == VRAMKIT_BLOCK_LIVE;
  info.active = block.state != VRAMKIT_BLOCK_FREE;
  if (info.allocated) {
    info.context_when_allocated = history.context_of(reinterpret_cast<void*>(block.address));
  }
  segment.requested_size += info.requested_size;
  segment.allocated_size += info.allocated ? info.size : 0;
  segment.active_size += info.active ? info.size : 0;
  segment.total_size = block.address + block.size_bytes - segment.address;
  segment.blocks.push_back(std::move(info));
}

}  // namespace

std::vector<vramkit_pool*> pools_of(c10::DeviceIndex device) {
  std::vector<vramkit_pool*> pools;
  uint64_t count = 0;
  do {
    pools.resize(count);
    if (core->device_pools(device, pools.data(), pools.size(), &count) != VRAMKIT_OK) return {};
  } while (count > pools.size());
  pools.resize(count);
  return pools;
}

c10::DeviceIndex device_of(vramkit_pool* pool) {
  const c10::DeviceIndex count = c10::cuda::device_count();
  for (c10::DeviceIndex device = 0; device < count; ++device) {
    const auto pools = pools_of(device);
    if (std::find(pools.begin(), pools.end(), pool) != pools.end()) return device;
  }
  return 0;
}

void PoolStatistics::add_to(DeviceStats& stats, c10::DeviceIndex device) const {
  for (vramkit_pool* const pool : pools_of(device)) {
    vramkit_stats own{};
    if (core->pool_stats(pool, &own) != VRAMKIT_OK) continue;
    add(stats.allocation, own.live_blocks, own.peak_live_blocks);
    add(stats.active, own.live_blocks, own.peak_live_blocks);
    add(stats.segment, 1, 1);
    add(stats.requested_bytes, own.live_bytes, own.peak_live_bytes);
    add(stats.allocated_bytes, own.allocated_bytes, own.peak_allocated_bytes);
    add(stats.active_bytes, own.allocated_bytes + own.pending_bytes, own.peak_allocated_bytes);
    add(stats.reserved_bytes, own.mapped_bytes, own.peak_mapped_bytes);
  }
  const vramkit_totals now = totals_of(device);
  const std::lock_guard guard(mutex_);
  const vramkit_totals& then = at_reset_.at(static_cast<size_t>(device));
  for (StatArray* const blocks : {&stats.allocation, &stats.active}) {
    add_totals(*blocks, now.allocations - then.allocations, now.frees - then.frees);
  }
  add_totals(stats.requested_bytes, now.requested_bytes - then.requested_bytes,
             now.freed_requested_bytes - then.freed_requested_bytes);
  for (StatArray* const bytes : {&stats.allocated_bytes, &stats.active_bytes}) {
    add_totals(*bytes, now.allocated_bytes - then.allocated_bytes,
               now.freed_allocated_bytes - then.freed_allocated_bytes);
  }
  // An overflow is first counted as a shortage, for a moment: the sum may fall by that.
  stats.num_ooms += static_cast<int64_t>(now.shortages - std::min(then.shortages, now.shortages));
}

void PoolStatistics::reset_accumulated(c10::DeviceIndex device) {
  const vramkit_totals now = totals_of(device);
  const std::lock_guard guard(mutex_);
  at_reset_.at(static_cast<size_t>(device)) = now;
}

void append_segments(std::vector<SegmentInfo>& segments, c10::DeviceIndex device,
                     const History& history) {
  for (vramkit_pool* const pool : pools_of(device)) {
    vramkit_stats stats{};
    if (core->pool_stats(pool, &stats) != VRAMKIT_OK) continue;
    bool adjoins = false;
    for (const vramkit_block& block : blocks_of(pool)) {
      const bool stitched = block.kind == VRAMKIT_BLOCK_STITCHED;
      if (!adjoins || stitched || block.address - end_of(segments.back()) >= stats.page_bytes) {
        segments.push_back(segment_at(device, block.address));
      }
      append_block(segments.back(), block, history);
      adjoins = !stitched;
    }
  }
}

DeviceMemory measure_memory(c10::cuda::CUDACachingAllocator::CUDAAllocator& native,
                            c10::DeviceIndex device, bool capturing) {
  constexpr auto kAll = static_cast<size_t>(StatType::AGGREGATE);
  DeviceMemory memory;
  const DeviceStats stats = native.getDeviceStats(device);
  memory.native_reserved = static_cast<uint64_t>(stats.reserved_bytes[kAll].current);
  memory.native_allocated = static_cast<uint64_t>(stats.allocated_bytes[kAll].current);
  for (vramkit_pool* const pool : pools_of(device)) {
    vramkit_stats own{};
    if (core->pool_stats(pool, &own) != VRAMKIT_OK) continue;
    memory.all_pools += own.held_bytes;
    if (pool != core->active_pool(device)) memory.other_pools += own.held_bytes;
  }
  if (capturing) return memory;
  size_t free = 0;
  size_t total = 0;
  if (cudaMemGetInfo(&free, &total) == cudaSuccess) {
    memory.whole = {free, total};
  } else {
    (void)cudaGetLastError();  // else the next check of a kernel launch would report it
  }
  return memory;
}

std::string describe_outside(const DeviceMemory& memory, c10::DeviceIndex device) {
  std::string text = "Outside the pool on cuda:" + std::to_string(device) +
                     ": PyTorch's own allocator holds " + mib(memory.native_reserved) + " (" +
                     mib(memory.native_allocated) + " in tensors)";
  if (memory.other_pools > 0) text += ", other vramkit pools " + mib(memory.other_pools);
  if (memory.whole) {
    const uint64_t known = memory.whole->free + memory.native_reserved + memory.all_pools;
    const uint64_t total = memory.whole->total;
    text += ", other processes and CUDA contexts " + mib(total - std::min(total, known)) +
            "; the device has " + mib(memory.whole->free) + " of " + mib(total) + " free";
  }
  return text + ".";
}

}  // namespace vramkit::adapter
