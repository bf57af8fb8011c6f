// What every CUDA backend shares: the device's context, and its events.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/driver_cuda.h"

namespace vramkit {

/// Holds a reference to the device's primary context for its whole life, and owns the events that
/// it hands out until `release_event`; the destructor destroys the idle ones. Every call enters the
/// context and leaves it again, so any thread may call. Throws kInvalidArgument where the device is
/// missing.
class CudaDevice : public Backend {
 public:
  explicit CudaDevice(int device);
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;
  ~CudaDevice() override;

  int device() const override { return device_; }
  uint64_t memory_limit() const override { return total_bytes_; }
  bool events_allowed() const override;
  Event record_event(uint64_t stream) override;
  bool event_done(Event event) override;
  void stream_wait(uint64_t stream, Event event) override;
  void synchronize(Event event) override;
  void synchronize_all() override;
  void release_event(Event event) override;
  /// The device's memory is not forked.
  void discard_in_child(uint64_t, uint64_t) override {}

 protected:
  cuda::Context context() const { return context_; }
  cuda::Device handle() const { return handle_; }
  int attribute(int which) const;

 private:
  const int device_;
  cuda::Device handle_ = 0;
  cuda::Context context_ = nullptr;
  uint64_t total_bytes_ = 0;
  std::vector<cuda::EventHandle> idle_events_;
  size_t events_made_ = 0;  // idle_events_ has room for all of them
};

/// Any thread may call these. A graph may be captured on that stream from now on, and no longer.
/// Told by the allocator adapter; whether it is, is then asked of the driver: a capture that failed
/// ends without a word.
void begin_capture(int device, uint64_t stream);
void end_capture(int device, uint64_t stream);
/// Around fork, so that the child does not find the lock of the above taken.
void lock_captures();
void unlock_captures();

/// Whether a graph is, or may be, being captured on any device. Costs nothing where none was.
bool is_capturing_anywhere();

}  // namespace vramkit
