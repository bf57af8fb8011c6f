#include "backend/driver_cuda.h"

#include <dlfcn.h>

#include <atomic>
#include <memory>

#include "base/error.h"

namespace vramkit::cuda {
namespace {

/// Leaves null where the driver has no function of that name.
template <typename Function>
void look_up_optional(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(::dlsym(library, name));
}

template <typename Function>
void look_up(void* library, const char* name, Function*& function) {
  look_up_optional(library, name, function);
  if (function == nullptr) {
    throw_error(Status::kSystem,
                "the CUDA driver has no %s; vramkit needs a driver of CUDA 12 or later", name);
  }
}

Driver open_driver() {
  void* library = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw_error(Status::kSystem, "no CUDA driver (libcuda.so.1) on this machine: %s", ::dlerror());
  }
  Driver d{};
  look_up(library, "cuInit", d.init);
  look_up(library, "cuGetErrorName", d.error_name);
  look_up(library, "cuDeviceGet", d.device_get);
  look_up(library, "cuDeviceGetCount", d.device_count);
  look_up(library, "cuDeviceGetAttribute", d.device_attribute);
  look_up(library, "cuDeviceTotalMem_v2", d.device_memory);
  look_up(library, "cuMemGetInfo_v2", d.memory_info);
  look_up(library, "cuDevicePrimaryCtxRetain", d.context_retain);
  look_up(library, "cuDevicePrimaryCtxGetState", d.context_state);
  look_up(library, "cuDeviceCanAccessPeer", d.can_access_peer);
  look_up(library, "cuDevicePrimaryCtxRelease_v2", d.context_release);
  look_up(library, "cuCtxPushCurrent_v2", d.context_push);
  look_up(library, "cuCtxPopCurrent_v2", d.context_pop);
  look_up(library, "cuCtxSynchronize", d.context_synchronize);
  look_up(library, "cuThreadExchangeStreamCaptureMode", d.exchange_capture_mode);
  look_up(library, "cuStreamIsCapturing", d.stream_is_capturing);
  look_up(library, "cuMemAddressReserve", d.address_reserve);
  look_up(library, "cuMemAddressFree", d.address_free);
  look_up(library, "cuMemGetAllocationGranularity", d.granularity);
  look_up(library, "cuMemCreate", d.memory_create);
  look_up(library, "cuMemRelease", d.memory_release);
  look_up(library, "cuMemMap", d.memory_map);
  look_up(library, "cuMemUnmap", d.memory_unmap);
  look_up(library, "cuMemSetAccess", d.memory_access);
  look_up(library, "cuMemHostRegister_v2", d.host_register);
  look_up(library, "cuMemHostUnregister", d.host_unregister);
  look_up_optional(library, "cuMemcpyBatchAsync_v2", d.copy_batch);
  look_up_optional(library, "cuMemcpyBatchAsync", d.copy_batch_12);
  look_up(library, "cuEventCreate", d.event_create);
  look_up(library, "cuEventDestroy_v2", d.event_destroy);
  look_up(library, "cuEventRecord", d.event_record);
  look_up(library, "cuEventQuery", d.event_query);
  look_up(library, "cuEventSynchronize", d.event_synchronize);
  look_up(library, "cuStreamWaitEvent", d.stream_wait);
  if (const Result result = d.init(0); result != kSuccess) {
    throw_error(Status::kSystem, "the CUDA driver cannot start: error %d", result);
  }
  return d;
}

std::atomic<const Driver*> opened = nullptr;

}  // namespace

const Driver& driver() {
  // Without a lock, which a child forked in the meantime would find taken for ever. Threads that
  // come here together each open the driver, and the first one's result stays.
  if (const Driver* known = opened.load(std::memory_order_acquire)) return *known;
  auto made = std::make_unique<const Driver>(open_driver());
  const Driver* first = nullptr;
  if (!opened.compare_exchange_strong(first, made.get())) return *first;
  return *made.release();
}

void use_driver(const Driver& stand_in) { opened = &stand_in; }

const char* name_of(Result result) {
  const char* name = nullptr;
  return driver().error_name(result, &name) == kSuccess ? name : "unknown error";
}

void check(Result result, const char* call) {
  if (result == kSuccess) return;
  const Status status = result == kOutOfMemory ? Status::kOutOfMemory : Status::kSystem;
  throw_error(status, "%s failed: %s (%d)", call, name_of(result), result);
}

void warn_on_failure(Result result, const char* call, unsigned long long what) noexcept {
  if (result == kSuccess || result == kDeinitialized) return;
  report("%s(0x%llx) failed: %s", call, what, name_of(result));
}

Entered::Entered(Context context) {
  check(driver().context_push(context), "cuCtxPushCurrent");
  pushed_ = true;
  driver().exchange_capture_mode(&mode_);
}

Entered::Entered(Context context, const std::nothrow_t&) noexcept {
  const Result result = driver().context_push(context);
  warn_on_failure(result, "cuCtxPushCurrent", reinterpret_cast<unsigned long long>(context));
  if (result != kSuccess) return;
  pushed_ = true;
  driver().exchange_capture_mode(&mode_);
}

Entered::~Entered() {
  if (!pushed_) return;
  driver().exchange_capture_mode(&mode_);
  Context popped = nullptr;
  driver().context_pop(&popped);
}

}  // namespace vramkit::cuda
