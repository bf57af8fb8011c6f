// PyTorch's CUDA allocator, in front of the pool core.
//
// Bound to one torch minor version, whose CUDAAllocator it derives from. It holds no decisions: the
// core says for each request and each address whether it is a pool's; the rest goes to the native
// allocator that it wraps.

#include <c10/core/impl/GPUTrace.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <torch/headeronly/version.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "bind/torch/adapter_common.h"
#include "bind/torch/adapter_cuda_filters.h"
#include "bind/torch/adapter_cuda_history.h"
#include "bind/torch/adapter_cuda_pools.h"
#include "bind/torch/adapter_cuda_versions.h"

namespace vramkit::adapter {
namespace {

using RecordContext = History::RecordContext;

/// Streams of torch's own live as long as the process. The id of any other is its handle, which
/// is even; torch's own have odd ids, and the default stream has 0.
uint32_t lifetime_of(c10::cuda::CUDAStream stream) {
  const bool external = stream.id() != 0 && (stream.id() & 1) == 0;
  return external ? VRAMKIT_STREAM_EXTERNAL : 0;
}

uint64_t number(cudaStream_t stream) { return reinterpret_cast<uint64_t>(stream); }

void free_block(void* address);

class CudaAdapter final : public Versioned {
 public:
  using CUDAAllocator::recordStream;
  using Versioned::Versioned;

  c10::DataPtr allocate(size_t size_bytes) override {
    if (size_bytes == 0) return native().allocate(0);
    const DeviceIndex device = c10::cuda::current_device();
    if (core->active_pool(device) == nullptr) return native().allocate(size_bytes);
    const auto stream = c10::cuda::getCurrentCUDAStream(device);
    void* const address = allocate_routed(device, size_bytes, stream.stream(), lifetime_of(stream));
    if (address == nullptr) return native().allocate(size_bytes);
    return {address, address, &free_block, {c10::DeviceType::CUDA, device}};
  }

  void* raw_alloc(size_t size_bytes) override {
    if (size_bytes == 0) return native().raw_alloc(0);
    const DeviceIndex device = c10::cuda::current_device();
    const auto stream = c10::cuda::getCurrentCUDAStream(device);
    void* const address = allocate_routed(device, size_bytes, stream.stream(), lifetime_of(stream));
    return address != nullptr ? address : native().raw_alloc(size_bytes);
  }

  void* raw_alloc_with_stream(size_t size_bytes, cudaStream_t stream) override {
    if (size_bytes == 0) return native().raw_alloc_with_stream(0, stream);
    const DeviceIndex device = c10::cuda::current_device();
    const auto current = c10::cuda::getCurrentCUDAStream(device);
    // Whether an arbitrary stream is one of torch's own cannot be asked.
    const uint32_t lifetime = current.stream() == stream ? lifetime_of(current)
                              : stream == nullptr        ? 0
                                                         : VRAMKIT_STREAM_EXTERNAL;
    void* const address = allocate_routed(device, size_bytes, stream, lifetime);
    return address != nullptr ? address : native().raw_alloc_with_stream(size_bytes, stream);
  }

  void raw_delete(void* address) override {
    if (core->owner(address) != nullptr) {
      release(address);
    } else {
      native().raw_delete(address);
    }
  }

  /// Gives back a pool's block. From any thread, at any time.
  void release(void* address) {
    const bool profiled = c10::memoryProfilingEnabled();
    vramkit_pool* const pool = profiled || history_.enabled() ? core->owner(address) : nullptr;
    if (pool != nullptr && history_.enabled()) record_free(pool, address);
    if (const auto* const tracer = c10::impl::GPUTrace::get_trace(); C10_UNLIKELY(tracer)) {
      (*tracer)->trace_gpu_memory_deallocation(c10::kCUDA, reinterpret_cast<uintptr_t>(address));
    }
    // Asked before the free, which may be the last one of a pool that waits for it to close.
    const DeviceIndex device = pool != nullptr && profiled ? device_of(pool) : DeviceIndex{0};
    uint64_t size_bytes = 0;
    const vramkit_status status = core->route_free(address, &size_bytes);
    if (status != VRAMKIT_OK) {
      complain_of_free(address, status);
    } else if (pool != nullptr && profiled) {
      report_to_profiler(pool, address, -clamped(size_bytes), {c10::DeviceType::CUDA, device});
    }
  }

  /// In a forked child: what another thread may have locked at the fork is not touched any more.
  void stop_in_child() { history_.stop_in_child(); }

  void recordStream(const c10::DataPtr& data, c10::cuda::CUDAStream stream) override {
    vramkit_pool* const pool = core->owner(data.get());
    if (pool == nullptr) {
      native().recordStream(data, stream);
      return;
    }
    TORCH_CHECK(stream.device_index() == data.device().index(),
                "vramkit: record_stream of a tensor of ", data.device(),
                " with a stream of cuda:", int{stream.device_index()},
                ": a MemoryPool waits for streams of its own device only. Let a stream of ",
                data.device(), " wait for that one, and record the former.");
    // A view made by another library may point into the block.
    vramkit_block block{};
    vramkit_status status = core->find_block(pool, data.get(), &block);
    if (status == VRAMKIT_OK && lifetime_of(stream) == VRAMKIT_STREAM_EXTERNAL) {
      status = core->declare_external_stream(pool, number(stream.stream()));
    }
    if (status == VRAMKIT_OK) {
      status = core->record_stream(pool, address_of(block), number(stream.stream()));
    }
    TORCH_CHECK(status == VRAMKIT_OK, "vramkit: record_stream of ", data.get(),
                " failed: ", core->last_error());
  }

  void* getBaseAllocation(void* address, size_t* size_bytes) override {
    vramkit_pool* const pool = core->owner(address);
    if (pool == nullptr) return native().getBaseAllocation(address, size_bytes);
    vramkit_block block{};
    TORCH_CHECK(core->find_block(pool, address, &block) == VRAMKIT_OK,
                "vramkit: ", core->last_error());
    if (size_bytes != nullptr) *size_bytes = block.size_bytes;
    return address_of(block);
  }

  torch_cuda::ShareableHandle shareIpcHandle(void* address) override {
    TORCH_CHECK(core->owner(address) == nullptr,
                "vramkit: this tensor lies in a MemoryPool, and CUDA cannot share a pool's memory "
                "with another process. Allocate what is to be shared natively: make it inside "
                "`with pool.outside():`, or share a copy that is made there: "
                "`with pool.outside(): shared = tensor.clone()`.");
    return native().shareIpcHandle(address);
  }

  void cacheInfo(DeviceIndex device, size_t* largest) override {
    vramkit_pool* const pool = core->active_pool(device);
    vramkit_stats stats{};
    if (pool == nullptr || core->pool_stats(pool, &stats) != VRAMKIT_OK) {
      native().cacheInfo(device, largest);
      return;
    }
    *largest = std::max(stats.largest_free_bytes, stats.largest_stitch_bytes);
  }

  DeviceStats getDeviceStats(DeviceIndex device) override {
    DeviceStats stats = native().getDeviceStats(device);
    statistics_.add_to(stats, device);
    return stats;
  }
  void resetAccumulatedStats(DeviceIndex device) override {
    native().resetAccumulatedStats(device);
    statistics_.reset_accumulated(device);
  }
  void resetPeakStats(DeviceIndex device) override {
    native().resetPeakStats(device);
    for (vramkit_pool* const pool : pools_of(device)) core->pool_reset_peaks(pool);
  }

  torch_cuda::SnapshotInfo snapshot(MempoolId_t id, bool include_traces) override {
    torch_cuda::SnapshotInfo info = native().snapshot(id, include_traces);
    if (id != MempoolId_t{0, 0}) return info;
    const DeviceIndex count = c10::cuda::device_count();
    for (DeviceIndex device = 0; device < count; ++device) {
      append_segments(info.segments, device, history_);
    }
    if (include_traces) history_.merge_into(info.device_traces);
    return info;
  }

  void recordHistory(bool enabled, torch_cuda::CreateContextFn recorder, size_t most_entries,
                     RecordContext when, bool clear,
                     const std::vector<std::string>& skipped_actions) override {
    native().recordHistory(enabled, recorder, most_entries, when, clear, skipped_actions);
    history_.configure({enabled, recorder, most_entries, when, clear, skipped_actions});
  }

  void beginAllocateToPool(DeviceIndex device, MempoolId_t id, Filters::Filter filter) override {
    native().beginAllocateToPool(device, id, filter);
    // A capture begins after this, on the stream that is current now.
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(device).stream();
    filters_.add({device, id, std::move(filter), stream});
    core->capture_begin(device, number(stream));
  }

  void endAllocateToPool(DeviceIndex device, MempoolId_t id) override {
    if (const auto stream = filters_.remove(device, id)) {
      core->capture_end(device, number(*stream));
    }
    native().endAllocateToPool(device, id);
  }

  /// Makes the memory of `owner_device` accessible from `device`.
  void enablePeerAccess(DeviceIndex device, DeviceIndex owner_device) override {
    native().enablePeerAccess(device, owner_device);
    TORCH_CHECK(core->device_add_peer(owner_device, device) == VRAMKIT_OK,
                "vramkit: the pools of cuda:", int{owner_device},
                " cannot be mapped on cuda:", int{device}, ": ", core->last_error());
  }

  cudaError_t memcpyAsync(void* target, int target_device, const void* source, int source_device,
                          size_t count, cudaStream_t stream, bool peers) override {
    const bool plain = peers || target_device == source_device;
    if (!plain && (core->owner(target) != nullptr || core->owner(source) != nullptr)) {
      // Mapped memory needs it, which native cannot know of the pools'.
      return cudaMemcpyPeerAsync(target, target_device, source, source_device, count, stream);
    }
    return native().memcpyAsync(target, target_device, source, source_device, count, stream, peers);
  }

  void attachOutOfMemoryObserver(torch_cuda::OutOfMemoryObserver observer) override {
    native().attachOutOfMemoryObserver(observer);
    const std::lock_guard guard(observers_mutex_);
    observers_.push_back(std::move(observer));
  }

 private:
  static void* address_of(const vramkit_block& block) {
    return reinterpret_cast<void*>(block.address);
  }

  /// Null: the request is native's.
  void* allocate_routed(DeviceIndex device, size_t size_bytes, cudaStream_t stream,
                        uint32_t lifetime) {
    if (core->active_pool(device) == nullptr || uncached_ || !native().isEnabled() ||
        filters_.accept(device, stream)) {
      return nullptr;
    }
    const History::Context context = history_.gather(RecordContext::STATE);
    void* address = nullptr;
    vramkit_pool* overflowed = nullptr;
    const vramkit_status status =
        core->route_alloc(device, size_bytes, number(stream), lifetime, &address, &overflowed);
    if (status == VRAMKIT_NOT_ROUTED) {
      if (overflowed != nullptr) warn_overflow(overflowed, size_bytes);
      return nullptr;
    }
    if (status != VRAMKIT_OK) throw_failure(status, device, size_bytes, stream, context);
    if (history_.enabled()) {
      history_.allocated({device, address, size_bytes, stream, native().getUserMetadata()},
                         context);
    }
    if (c10::memoryProfilingEnabled()) {
      report_to_profiler(core->owner(address), address, clamped(size_bytes),
                         {c10::DeviceType::CUDA, device});
    }
    if (const auto* const tracer = c10::impl::GPUTrace::get_trace(); C10_UNLIKELY(tracer)) {
      (*tracer)->trace_gpu_memory_allocation(c10::kCUDA, reinterpret_cast<uintptr_t>(address));
    }
    return address;
  }

  [[noreturn]] void throw_failure(vramkit_status status, DeviceIndex device, size_t size_bytes,
                                  cudaStream_t stream, const History::Context& context) {
    const std::string text = core->last_error();  // copied: the calls below may replace it
    TORCH_CHECK(is_memory_shortage(status), "vramkit: ", mib(size_bytes),
                " could not be allocated on cuda:", int{device}, ": ", text);
    const DeviceMemory memory = measure_memory(native(), device, filters_.any());
    const DeviceMemory::Whole whole = memory.whole.value_or(DeviceMemory::Whole{0, 0});
    history_.record(History::TraceEntry::OOM,
                    {device, reinterpret_cast<const void*>(whole.free), size_bytes, stream, ""},
                    context);
    c10::reportOutOfMemoryToProfiler(clamped(size_bytes), memory.native_allocated,
                                     memory.native_reserved + memory.all_pools,
                                     {c10::DeviceType::CUDA, device});
    for (const auto& observer : observers()) observer(device, size_bytes, whole.total, whole.free);
    // Programs that look for a batch size that fits know a shortage by these first words.
    TORCH_CHECK_WITH(OutOfMemoryError, false, "CUDA out of memory. ", text, "\n",
                     describe_outside(memory, device));
  }

  void record_free(vramkit_pool* pool, void* address) {
    vramkit_block block{};
    if (core->find_block(pool, address, &block) != VRAMKIT_OK) return;  // route_free complains
    history_.freed({device_of(pool), address, block.requested_bytes,
                    reinterpret_cast<void*>(block.stream), native().getUserMetadata()},
                   history_.gather(RecordContext::ALL));
  }

  /// A copy: an observer may take Python's lock, or attach another.
  std::vector<torch_cuda::OutOfMemoryObserver> observers() {
    const std::lock_guard guard(observers_mutex_);
    return observers_;
  }

  const bool uncached_ = std::getenv("PYTORCH_NO_CUDA_MEMORY_CACHING") != nullptr;
  Filters filters_;
  PoolStatistics statistics_;
  std::mutex observers_mutex_;
  std::vector<torch_cuda::OutOfMemoryObserver> observers_;
};

/// Never destroyed: storages keep a pointer to it until the process ends.
CudaAdapter* adapter = nullptr;
const c10::Allocator* native_allocator = nullptr;

void free_block(void* address) {
  if (address != nullptr) adapter->release(address);
}

}  // namespace
}  // namespace vramkit::adapter

extern "C" {

// The torch release whose headers this library was compiled with.
VRAMKIT_API const char* vramkit_adapter_torch_version(void) { return TORCH_VERSION; }

// Puts the adapter in front of PyTorch's CUDA allocator, for the rest of the process. Not
// thread-safe, as c10::SetAllocator is not. Returns null, or why nothing was installed.
VRAMKIT_API const char* vramkit_adapter_install(const vramkit_core_api* api) {
  namespace own = vramkit::adapter;
  if (own::adapter != nullptr) return nullptr;
  if (const char* const refusal = own::refusal_of(*api)) return refusal;
  auto& installed = c10::cuda::CUDACachingAllocator::allocator;
  auto* const native = installed.load();
  if (native == nullptr) return "this torch has no CUDA allocator";
  if (native->name() != "native") {
    static std::string refusal;
    refusal = "the CUDA allocator in use is \"" + native->name() +
              "\", and pools work in front of PyTorch's native one only; start the program without "
              "backend:cudaMallocAsync in PYTORCH_ALLOC_CONF and without change_current_allocator";
    return refusal.c_str();
  }
  own::core = api;
  own::native_allocator = native;
  own::adapter = new own::CudaAdapter(*native);
  if (::pthread_atfork(nullptr, nullptr, [] { own::adapter->stop_in_child(); }) != 0) {
    return "the system refuses another fork handler";
  }
  // Some callers ask for the allocator of the device type, others for CUDA's own.
  c10::SetAllocator(c10::DeviceType::CUDA, own::adapter, std::numeric_limits<uint8_t>::max());
  installed.store(own::adapter);
  return nullptr;
}

// Leads the growth of a storage (a c10::StorageImpl) that was made before the installation to the
// adapter. Returns 1, or 0 for any other storage. No other thread may be resizing it.
VRAMKIT_API int32_t vramkit_adapter_adopt(void* storage) {
  namespace own = vramkit::adapter;
  return own::adopt(storage, own::native_allocator, own::adapter);
}

}  // extern "C"
