// What differs between the torch minor versions that the adapter supports, and nothing else.
#pragma once

#include <torch/headeronly/version.h>

#include <memory>
#include <string>
#include <utility>

#include "bind/torch/adapter_common.h"
#include "bind/torch/adapter_cuda_forward.h"
#include "bind/torch/adapter_cuda_history.h"
#include "bind/torch/adapter_cuda_pools.h"

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 11);

namespace vramkit::adapter {

class Versioned : public Forwarder {
 public:
  using Forwarder::Forwarder;

#if TORCH_VERSION_MINOR >= 12
  void attachOomRejectionObserver(torch_cuda::OomRejectionObserver observer) override {
    native().attachOomRejectionObserver(std::move(observer));
  }
  std::shared_ptr<c10::GatheredContext> getContextForPointer(const void* address) override {
    if (core->owner(address) != nullptr) return history_.context_of(address);
    return native().getContextForPointer(address);
  }
#endif

#if TORCH_VERSION_MINOR >= 13
  void markCaptureBegin(DeviceIndex device) override { native().markCaptureBegin(device); }
  void markCaptureEnd(DeviceIndex device) override { native().markCaptureEnd(device); }
  c10::DataPtr allocateWithAddress(size_t size_bytes, void* address) override {
    return native().allocateWithAddress(size_bytes, address);
  }
#endif

#if TORCH_VERSION_MINOR >= 14
  bool supportsUserMetadata() override { return native().supportsUserMetadata(); }
  void annotateMemory(const void* address, const std::string& metadata) override {
    if (vramkit_pool* const pool = core->owner(address)) {
      history_.record(torch_cuda::TraceEntry::ANNOTATE,
                      {device_of(pool), address, 0, nullptr, metadata}, nullptr);
    } else {
      native().annotateMemory(address, metadata);
    }
  }
#endif

 protected:
  History history_;
};

}  // namespace vramkit::adapter
