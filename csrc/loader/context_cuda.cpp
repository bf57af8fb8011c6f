#include "loader/context_cuda.h"

#include "base/error.h"

namespace vramkit {

using cuda::check;
using cuda::driver;

PrimaryContext::PrimaryContext(int device) {
  int count = 0;
  check(driver().device_count(&count), "cuDeviceGetCount");
  if (device < 0 || device >= count) {
    throw_error(Status::kInvalidArgument, "there is no CUDA device %d: the driver counts %d",
                device, count);
  }
  check(driver().device_get(&handle_, device), "cuDeviceGet");
  check(driver().context_retain(&context_, handle_), "cuDevicePrimaryCtxRetain");
}

PrimaryContext::~PrimaryContext() {
  cuda::warn_on_failure(driver().context_release(handle_), "cuDevicePrimaryCtxRelease",
                        static_cast<unsigned long long>(handle_));
}

}  // namespace vramkit
