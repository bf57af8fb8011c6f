// What every CUDA backend shares: the device's context, and its events.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "backend/driver_cuda.h"

namespace vramkit {

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
  void release_event(Event event) override;
  /// The device's memory is not forked.
  void discard_in_child(uint64_t, uint64_t) override {}

 protected:
  cuda::Context context() const { return context_; }
  int attribute(int which) const;

 private:
  const int device_;
  cuda::Device handle_ = 0;
  cuda::Context context_ = nullptr;
  uint64_t total_bytes_ = 0;
  std::vector<cuda::EventHandle> idle_events_;
};

/// Graph captures under way on a device, told by the allocator adapter.
void count_captures(int device, int change);

}  // namespace vramkit
