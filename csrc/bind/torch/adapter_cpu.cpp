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
#include <limits>
#include <string>

#include "bind/c/vramkit.h"
#include "bind/torch/adapter_common.h"

namespace vramkit::adapter {
namespace {

constexpr auto kCpu = c10::DeviceType::CPU;

c10::Allocator* native = nullptr;
c10::DeleterFnPtr native_deleter = nullptr;

[[noreturn]] void throw_failure(vramkit_status status, std::size_t size_bytes) {
  const std::string text = core->last_error();  // copied: the call below may replace it
  const bool memory = is_memory_shortage(status);
  if (memory && c10::memoryProfilingEnabled()) {
    c10::reportOutOfMemoryToProfiler(clamped(size_bytes), 0, 0, kCpu);
  }
  // Programs that look for a batch size that fits know a shortage by these first words, which are
  // PyTorch's own.
  TORCH_CHECK_WITH(OutOfMemoryError, !memory, "DefaultCPUAllocator: can't allocate memory. ", text);
  TORCH_CHECK(false, "vramkit: ", mib(size_bytes), " could not be allocated: ", text);
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
    complain_of_free(address, status);
  } else if (pool != nullptr) {
    report_to_profiler(pool, address, -clamped(size_bytes), kCpu);
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
      report_to_profiler(core->owner(address), address, clamped(size_bytes), kCpu);
    }
    return {address, address, &free_block, kCpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }

  void copy_data(void* destination, const void* source, std::size_t count) const override {
    default_copy_data(destination, source, count);
  }
};

/// Never destroyed: storages keep a pointer to it until the process ends.
CpuAdapter* adapter = nullptr;

}  // namespace
}  // namespace vramkit::adapter

extern "C" {

// The torch release whose headers this library was compiled with.
VRAMKIT_API const char* vramkit_adapter_torch_version(void) { return TORCH_VERSION; }

// Puts the adapter in front of PyTorch's CPU allocator, for the rest of the process. Not
// thread-safe, as c10::SetAllocator is not. Returns null, or why nothing was installed.
VRAMKIT_API const char* vramkit_adapter_install(const vramkit_core_api* api) {
  namespace own = vramkit::adapter;
  if (own::core != nullptr) return nullptr;
  if (const char* const refusal = own::refusal_of(*api)) return refusal;
  c10::Allocator* const previous = c10::GetAllocator(own::kCpu);
  if (previous->raw_deleter() == nullptr) {
    return "the CPU allocator in use cannot free by address alone";
  }
  own::native = previous;
  own::native_deleter = previous->raw_deleter();
  own::core = api;
  own::adapter = new own::CpuAdapter;
  c10::SetAllocator(own::kCpu, own::adapter, std::numeric_limits<uint8_t>::max());
  return nullptr;
}

// Leads the growth of a storage (a c10::StorageImpl) that was made before the installation to the
// adapter. Returns 1, or 0 for any other storage. No other thread may be resizing it.
VRAMKIT_API int32_t vramkit_adapter_adopt(void* storage) {
  namespace own = vramkit::adapter;
  return own::adopt(storage, own::native, own::adapter);
}

}  // extern "C"
