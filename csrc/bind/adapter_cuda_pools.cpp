#include "bind/adapter_cuda_pools.h"

#include <c10/cuda/CUDAFunctions.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>

#include <algorithm>

namespace vramkit::adapter {
namespace {

using c10::CachingAllocator::Stat;
using c10::CachingAllocator::StatArray;
using c10::CachingAllocator::StatType;
using c10::CachingDeviceAllocator::BlockInfo;

struct Amount {
  uint64_t current;
  uint64_t peak;
  uint64_t allocated = 0;
  uint64_t freed = 0;
};

void add(StatArray& stats, const Amount& amount) {
  for (const StatType type : {StatType::AGGREGATE, StatType::LARGE_POOL}) {
    Stat& stat = stats[static_cast<size_t>(type)];
    stat.current += static_cast<int64_t>(amount.current);
    stat.peak += static_cast<int64_t>(std::max(amount.peak, amount.current));
    stat.allocated += static_cast<int64_t>(amount.allocated);
    stat.freed += static_cast<int64_t>(amount.freed);
  }
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

PoolStatistics::Totals PoolStatistics::totals_of(const vramkit_stats& stats) {
  // A request that went on to native memory is no shortage for the program.
  return {stats.allocations, stats.frees,
          stats.failures - std::min(stats.failures, stats.overflow_allocations)};
}

PoolStatistics::Totals PoolStatistics::since_reset(vramkit_pool* pool,
                                                   const vramkit_stats& stats) const {
  Totals totals = totals_of(stats);
  const auto found = baselines_.find(pool);
  if (found == baselines_.end()) return totals;
  const Totals& baseline = found->second;
  return {totals.allocations - baseline.allocations, totals.frees - baseline.frees,
          totals.shortages - baseline.shortages};
}

void PoolStatistics::add_to(DeviceStats& stats, c10::DeviceIndex device) const {
  const std::lock_guard guard(mutex_);
  for (vramkit_pool* const pool : pools_of(device)) {
    vramkit_stats own{};
    if (core->pool_stats(pool, &own) != VRAMKIT_OK) continue;
    const Totals totals = since_reset(pool, own);
    const Amount blocks = {own.live_blocks, own.live_blocks, totals.allocations, totals.frees};
    add(stats.allocation, blocks);
    add(stats.active, blocks);
    add(stats.segment, {1, 1});
    add(stats.requested_bytes, {own.live_bytes, own.peak_live_bytes});
    add(stats.allocated_bytes, {own.allocated_bytes, own.peak_allocated_bytes});
    add(stats.active_bytes, {own.allocated_bytes + own.pending_bytes, own.peak_allocated_bytes});
    add(stats.reserved_bytes, {own.mapped_bytes, own.peak_mapped_bytes});
    stats.num_ooms += static_cast<int64_t>(totals.shortages);
  }
}

void PoolStatistics::reset_accumulated(c10::DeviceIndex device) {
  const std::lock_guard guard(mutex_);
  for (vramkit_pool* const pool : pools_of(device)) {
    vramkit_stats own{};
    if (core->pool_stats(pool, &own) == VRAMKIT_OK) baselines_[pool] = totals_of(own);
  }
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
    memory.all_pools += own.mapped_bytes;
    if (pool != core->active_pool(device)) memory.other_pools += own.mapped_bytes;
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
  const auto mib = [](uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; };
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
