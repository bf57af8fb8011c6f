// What the allocator adapters share: the core's functions, and how its answers reach PyTorch.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/util/Exception.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "base/bytes.h"
#include "bind/c/vramkit.h"

namespace vramkit::adapter {

/// Set once, before the adapter is installed.
inline const vramkit_core_api* core = nullptr;

/// Null, or why the adapter cannot work with this core.
inline const char* refusal_of(const vramkit_core_api& api) {
  if (api.abi_version == VRAMKIT_ABI_VERSION && api.struct_bytes >= sizeof(vramkit_core_api)) {
    return nullptr;
  }
  return "the core library is of another vramkit version";
}

/// A size no machine can have is out of memory too, as it is for PyTorch's own allocators.
inline bool is_memory_shortage(vramkit_status status) {
  return status == VRAMKIT_OUT_OF_MEMORY || status == VRAMKIT_INVALID_ARGUMENT;
}

inline int64_t clamped(std::size_t size_bytes) {
  constexpr auto kLargest = static_cast<std::size_t>(std::numeric_limits<int64_t>::max());
  return static_cast<int64_t>(size_bytes < kLargest ? size_bytes : kLargest);
}

/// Only while the profiler records memory: two calls and a pool's lock.
inline void report_to_profiler(vramkit_pool* pool, void* address, int64_t change_bytes,
                               c10::Device device) {
  vramkit_stats stats{};
  if (core->pool_stats(pool, &stats) == VRAMKIT_OK) {
    c10::reportMemoryUsageToProfiler(address, change_bytes, stats.allocated_bytes,
                                     stats.capacity_bytes, device);
  }
}

inline void warn_overflow(vramkit_pool* pool, std::size_t size_bytes) {
  vramkit_stats stats{};
  if (core->pool_stats(pool, &stats) != VRAMKIT_OK) return;
  TORCH_WARN(
      "vramkit: a pool of ", mib(stats.capacity_bytes), " (", mib(stats.live_bytes),
      " live) has no room for ", mib(size_bytes),
      ". PyTorch's own allocator serves this request and later ones that do not fit, because "
      "of overflow=\"native\". No further warning follows; stats().overflow_allocations "
      "counts these requests.");
}

/// Frees run in destructors, and at process exit: nobody could catch an exception.
inline void complain_of_free(const void* address, vramkit_status status) {
  std::fprintf(stderr, "vramkit: freeing %p failed (status %d): %s\n", address,
               static_cast<int>(status), core->last_error());
}

/// A storage keeps the allocator of its time and grows by it. One of before the adapter is led to
/// it; what the storage holds now keeps its own deleter. Returns whether the storage was such a
/// one.
inline int32_t adopt(void* storage, const c10::Allocator* native, c10::Allocator* adapter) {
  auto* const impl = static_cast<c10::StorageImpl*>(storage);
  if (adapter == nullptr || impl->allocator() != native) return 0;
  impl->set_allocator(adapter);
  return 1;
}

}  // namespace vramkit::adapter
