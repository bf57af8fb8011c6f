#include "backend/device_cuda.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <vector>

#include "base/error.h"

namespace vramkit {
namespace {

using cuda::check;
using cuda::driver;
using cuda::Entered;
using cuda::warn_on_failure;

constexpr int kMaxDevices = 64;

/// The streams of one device on which a graph may be being captured.
struct Captures {
  std::vector<uint64_t> streams;
  std::atomic<size_t> count = 0;
};
std::array<Captures, kMaxDevices> captures;
std::mutex captures_mutex;  // of the streams of all devices

Captures& captures_on(int device) {
  if (device < 0 || device >= kMaxDevices) {
    throw_error(Status::kInvalidArgument, "CUDA device %d is not between 0 and %d", device,
                kMaxDevices - 1);
  }
  return captures[static_cast<size_t>(device)];
}

bool is_capturing(uint64_t stream) {
  if (stream == 0) return false;  // the legacy stream cannot be captured, nor asked
  int status = 0;
  const cuda::Result result =
      driver().stream_is_capturing(reinterpret_cast<cuda::Stream>(stream), &status);
  return result != cuda::kSuccess || status != 0;
}

[[noreturn]] void refuse_capturing(uint64_t stream) {
  throw_error(
      Status::kBusy,
      "a CUDA graph is being captured on stream %p, and memory that was used on another stream "
      "cannot be waited for during a capture",
      reinterpret_cast<const void*>(stream));
}

cuda::EventHandle handle_of(Event event) { return reinterpret_cast<cuda::EventHandle>(event); }
cuda::Stream stream_of(uint64_t stream) { return reinterpret_cast<cuda::Stream>(stream); }

}  // namespace

void begin_capture(int device, uint64_t stream) {
  Captures& on = captures_on(device);
  const std::lock_guard guard(captures_mutex);
  on.streams.push_back(stream);
  on.count.store(on.streams.size(), std::memory_order_release);
}

void end_capture(int device, uint64_t stream) {
  Captures& on = captures_on(device);
  const std::lock_guard guard(captures_mutex);
  const auto found = std::find(on.streams.begin(), on.streams.end(), stream);
  if (found != on.streams.end()) on.streams.erase(found);
  on.count.store(on.streams.size(), std::memory_order_release);
}

void lock_captures() { captures_mutex.lock(); }

void unlock_captures() { captures_mutex.unlock(); }

bool is_capturing_anywhere() {
  const auto any = [](Captures& on) {
    if (on.count.load(std::memory_order_acquire) == 0) return false;
    const std::lock_guard guard(captures_mutex);
    return std::any_of(on.streams.begin(), on.streams.end(), is_capturing);
  };
  try {
    return std::any_of(captures.begin(), captures.end(), any);
  } catch (const Error&) {
    return true;  // one was announced, and the driver cannot be asked
  }
}

CudaDevice::CudaDevice(int device) : device_(device) {
  int count = 0;
  check(driver().device_count(&count), "cuDeviceGetCount");
  if (device < 0 || device >= count || device >= kMaxDevices) {
    throw_error(Status::kInvalidArgument, "there is no CUDA device %d: this machine has %d", device,
                count);
  }
  check(driver().device_get(&handle_, device), "cuDeviceGet");
  size_t total = 0;
  check(driver().device_memory(&total, handle_), "cuDeviceTotalMem");
  total_bytes_ = total;
  check(driver().context_retain(&context_, handle_), "cuDevicePrimaryCtxRetain");
}

CudaDevice::~CudaDevice() {
  const Entered entered(context_, std::nothrow);
  if (!entered) return;
  for (const cuda::EventHandle event : idle_events_) {
    warn_on_failure(driver().event_destroy(event), "cuEventDestroy",
                    reinterpret_cast<uint64_t>(event));
  }
  warn_on_failure(driver().context_release(handle_), "cuDevicePrimaryCtxRelease", 0);
}

int CudaDevice::attribute(int which) const {
  int value = 0;
  check(driver().device_attribute(&value, which, handle_), "cuDeviceGetAttribute");
  return value;
}

bool CudaDevice::events_allowed() const {
  Captures& on = captures_on(device_);
  if (on.count.load(std::memory_order_acquire) == 0) return true;
  const Entered entered(context_);
  const std::lock_guard guard(captures_mutex);
  return std::none_of(on.streams.begin(), on.streams.end(), is_capturing);
}

Event CudaDevice::record_event(uint64_t stream) {
  const Entered entered(context_);
  if (idle_events_.empty()) {
    // Of all that were handed out too: their release must not fail.
    idle_events_.reserve(std::max(events_made_ + 1, 2 * idle_events_.capacity()));
    cuda::EventHandle made = nullptr;
    const cuda::Result result = driver().event_create(&made, cuda::kEventWithoutTiming);
    if (result == cuda::kDeinitialized) return 0;
    check(result, "cuEventCreate");
    idle_events_.push_back(made);
    ++events_made_;
  }
  const cuda::EventHandle event = idle_events_.back();
  check(driver().event_record(event, stream_of(stream)), "cuEventRecord");
  // A capture may have begun since somebody asked. Such an event can be neither queried nor waited
  // for; recorded again, it is as good as new.
  if (is_capturing(stream)) refuse_capturing(stream);
  idle_events_.pop_back();
  return reinterpret_cast<Event>(event);
}

bool CudaDevice::event_done(Event event) {
  if (event == 0) return true;
  const Entered entered(context_);
  const cuda::Result result = driver().event_query(handle_of(event));
  if (result == cuda::kNotReady) return false;
  check(result, "cuEventQuery");
  return true;
}

void CudaDevice::stream_wait(uint64_t stream, Event event) {
  if (event == 0) return;
  const Entered entered(context_);
  if (is_capturing(stream)) refuse_capturing(stream);
  check(driver().stream_wait(stream_of(stream), handle_of(event), 0), "cuStreamWaitEvent");
}

void CudaDevice::synchronize(Event event) {
  if (event == 0) return;
  const Entered entered(context_);
  check(driver().event_synchronize(handle_of(event)), "cuEventSynchronize");
}

void CudaDevice::synchronize_all() {
  const Entered entered(context_);
  const cuda::Result result = driver().context_synchronize();
  if (result == cuda::kCaptureUnsupported) {
    throw_error(Status::kBusy,
                "cuda:%d cannot be waited for while a CUDA graph is being captured on it", device_);
  }
  check(result, "cuCtxSynchronize");
}

void CudaDevice::release_event(Event event) {
  if (event != 0) idle_events_.push_back(handle_of(event));
}

}  // namespace vramkit
