// PyTorch's CPU allocator, in front of the pool core.
//
// Bound to one torch minor version, whose c10::Allocator it derives from. It holds no decisions:
// the core says for each request and each address whether it is a pool's; the rest goes to the
// allocator that was installed before.

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>
#include <torch/headeronly/version.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <limits>

#include "bind/vramkit.h"

namespace {

constexpr auto kCpu = c10::DeviceType::CPU;

const vramkit_core_api* core = nullptr;
c10::Allocator* native = nullptr;
c10::DeleterFnPtr native_deleter = nullptr;

// Only while the profiler records memory: two calls and a pool's lock.
void report_to_profiler(vramkit_pool* pool, void* address, int64_t change_bytes) {
  vramkit_stats stats{};
  if (core->pool_stats(pool, &stats) == VRAMKIT_OK) {
    c10::reportMemoryUsageToProfiler(address, change_bytes, stats.allocated_bytes,
                                     stats.capacity_bytes, kCpu);
  }
}

void warn_overflow(vramkit_pool* pool, std::size_t size_bytes) {
  vramkit_stats stats{};
  if (core->pool_stats(pool, &stats) != VRAMKIT_OK) return;
  TORCH_WARN("vramkit: a pool of ", stats.capacity_bytes >> 20, " MiB (", stats.live_bytes >> 20,
             " MiB live) has no room for ", size_bytes,
             " bytes: they come from PyTorch's own allocator, as overflow=\"native\" asks. Further "
             "requests do so silently; stats().overflow_allocations counts them.");
}

[[noreturn]] void throw_failure(vramkit_status status, std::size_t size_bytes) {
  const char* text = core->last_error();
  // A size no machine can have is out of memory too, as it is for PyTorch's own allocators.
  const bool memory = status == VRAMKIT_OUT_OF_MEMORY || status == VRAMKIT_INVALID_ARGUMENT;
  if (memory && c10::memoryProfilingEnabled()) {
    constexpr auto kLargest = static_cast<std::size_t>(std::numeric_limits<int64_t>::max());
    c10::reportOutOfMemoryToProfiler(
        static_cast<int64_t>(size_bytes < kLargest ? size_bytes : kLargest), 0, 0, kCpu);
  }
  TORCH_CHECK_WITH(OutOfMemoryError, !memory, text);
  TORCH_CHECK(false, "vramkit: ", size_bytes, " bytes could not be allocated: ", text);
}

// Called for the pools' blocks, and, through raw_deallocate(), for whatever was allocated by the
// allocator of an earlier time: oneDNN asks for "the CPU allocator" anew at each free.
void free_block(void* address) {
  if (address == nullptr) return;
  const bool profiling = c10::memoryProfilingEnabled();
  vramkit_pool* pool = profiling ? core->owner(address) : nullptr;
  uint64_t size_bytes = 0;
  const vramkit_status status = core->route_free(address, &size_bytes);
  if (status == VRAMKIT_NOT_ROUTED) {
    native_deleter(address);
  } else if (status != VRAMKIT_OK) {
    // Runs in destructors, and at process exit: nobody could catch an exception.
    std::fprintf(stderr, "vramkit: freeing %p failed (status %d): %s\n", address,
                 static_cast<int>(status), core->last_error());
  } else if (pool != nullptr) {
    report_to_profiler(pool, address, -static_cast<int64_t>(size_bytes));
  }
}

class CpuAdapter final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t size_bytes) override {
    if (size_bytes == 0) return {nullptr, nullptr, &free_block, kCpu};
    void* address = nullptr;
    vramkit_pool* overflowed = nullptr;
    const vramkit_status status =
        core->route_alloc(VRAMKIT_DEVICE_CPU, size_bytes, 0, 0, &address, &overflowed);
    if (status == VRAMKIT_NOT_ROUTED) {
      if (overflowed != nullptr) warn_overflow(overflowed, size_bytes);
      return native->allocate(size_bytes);
    }
    if (status != VRAMKIT_OK) throw_failure(status, size_bytes);
    if (c10::memoryProfilingEnabled()) {
      report_to_profiler(core->owner(address), address, static_cast<int64_t>(size_bytes));
    }
    return {address, address, &free_block, kCpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* destination, const void* source, std::size_t count) const override {
    default_copy_data(destination, source, count);
  }
};

}  // namespace

extern "C" {

// The torch release whose headers this library was compiled with.
VRAMKIT_API const char* vramkit_adapter_torch_version(void) { return TORCH_VERSION; }

// Puts the adapter in front of PyTorch's CPU allocator, for the rest of the process. Not
// thread-safe, as c10::SetAllocator is not. Returns null, or why nothing was installed.
VRAMKIT_API const char* vramkit_adapter_install(const vramkit_core_api* api) {
  if (core != nullptr) return nullptr;
  if (api->abi_version != VRAMKIT_ABI_VERSION || api->struct_bytes < sizeof(vramkit_core_api)) {
    return "the core library is of another vramkit version";
  }
  c10::Allocator* const previous = c10::GetAllocator(kCpu);
  if (previous->raw_deleter() == nullptr) {
    return "the CPU allocator in use cannot free by address alone";
  }
  native = previous;
  native_deleter = previous->raw_deleter();
  core = api;
  // Never destroyed: storages keep a pointer to it until the process ends.
  auto* const adapter = new CpuAdapter;
  c10::SetAllocator(kCpu, adapter, std::numeric_limits<uint8_t>::max());
  return nullptr;
}

}  // extern "C"
