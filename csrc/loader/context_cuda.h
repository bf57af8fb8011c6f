// The context in which the loader calls the CUDA driver.
#pragma once

#include "backend/driver_cuda.h"

namespace vramkit {

/// A use of a device's primary context, which is created where nobody uses it yet. `cuda::Entered`
/// makes it current. Throws kInvalidArgument where there is no such device.
class PrimaryContext {
 public:
  explicit PrimaryContext(int device);
  PrimaryContext(const PrimaryContext&) = delete;
  PrimaryContext& operator=(const PrimaryContext&) = delete;
  ~PrimaryContext();
  cuda::Context get() const { return context_; }

 private:
  cuda::Device handle_ = 0;
  cuda::Context context_ = nullptr;
};

}  // namespace vramkit
