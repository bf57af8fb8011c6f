// The device and the stream that an operator runs on.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace vramkit::ops {

inline constexpr int kThreads = 256;
inline constexpr int kBlocksPerMultiprocessor = 8;

inline void check_cuda(cudaError_t status, const char* call) {
  STD_TORCH_CHECK(status == cudaSuccess, "vramkit: ", call,
                  " failed: ", cudaGetErrorString(status));
}

/// The current device and stream while an operator runs.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream) == AOTI_TORCH_SUCCESS,
                    "torch does not tell the current stream of cuda:", device_);
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  /// Blocks for so many threads, at most those that the device runs at once.
  unsigned int blocks_for(int64_t threads) const {
    return static_cast<unsigned int>(
        std::clamp<int64_t>((threads + kThreads - 1) / kThreads, 1, most_blocks()));
  }

  int64_t most_blocks() const { return multiprocessors() * kBlocksPerMultiprocessor; }

  int64_t multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }

  /// Shared memory of a multiprocessor.
  int64_t shared_bytes() const { return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor); }

 private:
  int attribute(cudaDeviceAttr name) const {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, device_), "cudaDeviceGetAttribute");
    return value;
  }

  int device_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

/// Allows a kernel so much shared memory: more than 48 KiB must be asked for.
template <class Kernel>
void allow_shared(Kernel* kernel, std::size_t bytes) {
  constexpr std::size_t kWithoutAsking = 48 << 10;
  if (bytes <= kWithoutAsking) return;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(bytes)),
             "cudaFuncSetAttribute");
}

}  // namespace vramkit::ops
